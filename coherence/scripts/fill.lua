#!lua
-- Accepts or refuses a fill. KEYS: the key of the ticket; the key of the value
-- (the same, but for plain entries); from a standby the cell and the floor.
-- ARGV: incarnation, generation, value, milliseconds or 0, and from a standby
-- the stamp and the field. Returns the number of a Reason.
local key = KEYS[1]
local head = redis.pcall('GETRANGE', key, 0, 25)
if type(head) ~= 'string' then
  redis.call('UNLINK', key)
  return 3
end
if head == '' then return 1 end
local version, state = string.byte(head, 1, 2)
if version ~= 1 or #head < 10 or (state ~= 69 and (#head < 26 or (state ~= 86 and state ~= 83))) then
  redis.call('UNLINK', key)
  return 3
end
if string.sub(head, 3, 10) ~= ARGV[1] then return 2 end
if state ~= 69 and ARGV[2] < string.sub(head, 11, 26) then return 6 end
for i = 3, #KEYS do
  local stamp = ARGV[5]
  local field = i == 3 and ARGV[6] or '0'
  local cell = redis.call('HMGET', KEYS[i], 'base', field)
  if not cell[1] or string.sub(cell[1], 1, 4) < string.sub(stamp, 1, 4) then return 4 end
  if not (cell[1] < stamp) or (cell[2] and not (cell[2] < stamp)) then return 5 end
end
if ARGV[4] == '0' then
  redis.call('SET', KEYS[2], ARGV[3])
else
  redis.call('SET', KEYS[2], ARGV[3], 'PX', ARGV[4])
end
return 0
