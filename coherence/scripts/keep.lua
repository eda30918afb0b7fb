#!lua flags=allow-oom
-- Invalidates one exact entry without unlinking a value that it may keep.
-- KEYS: the entry. ARGV: K (keep) or S (stale), X, new incarnation.
-- Returns D (was there, unlinked), A (no value was there), K (kept), S (stale).
local key, action, x = KEYS[1], ARGV[1], ARGV[2]
local head = redis.pcall('GETRANGE', key, 0, 45)
if type(head) ~= 'string' then
  redis.call('UNLINK', key)
  return 'D'
end
if head == '' then return 'A' end
local version, state = string.byte(head, 1, 2)
if #head < 10 or version ~= 1 or state == 69 then
  redis.call('UNLINK', key)
  if #head >= 10 and version == 1 then return 'A' end
  return 'D'
end
if #head < 46 or (state ~= 86 and state ~= 83) then
  redis.call('UNLINK', key)
  return 'D'
end
if state == 86 and x < string.sub(head, 27, 46) then
  redis.call('SETRANGE', key, 2, ARGV[3])
  return 'K'
end
if action == 'K' then
  redis.call('UNLINK', key)
  return 'D'
end
if state == 86 then
  local now = redis.call('TIME')
  local us = tonumber(now[1]) * 1000000 + tonumber(now[2])
  local text = ''
  for _ = 1, 8 do
    text = string.char(us % 256) .. text
    us = math.floor(us / 256)
  end
  redis.call('SETRANGE', key, 46, text)
end
redis.call('SETRANGE', key, 1, 'S' .. ARGV[3])
return 'S'
