#!lua flags=allow-oom
-- One script writes control and broadcasts, so that no record can change
-- without its message. KEYS: stream, last, v, purges, source, then for op raise
-- the class record; for op keys the named classes and, on one node, perhaps the
-- watermarks.
-- ARGV: channel command, stream length, stream bytes, id, v, op, body, then
-- for op raise: cause, bound; for op open and close: the purge's field; for op
-- keys with watermarks: as watermark.lua. A body has room for w and v; see
-- Message. Returns number and generation; for op keys the named classes, too,
-- and what watermark.lua returns, or -2 if it was not written.
local call = redis.call
local last = call('HMGET', KEYS[2], 'number', 'id', 'mean')
local id, v, op, body = ARGV[4], ARGV[5], ARGV[6], ARGV[7]
local generation = '0000000000000000'
if op == 'raise' then
  local have = call('HMGET', KEYS[6], 'generation', 'bound', 'causes')
  local causes = have[3] or ''
  if string.find('\n' .. causes, '\n' .. ARGV[8] .. '\n', 1, true) then return {0, ''} end
  local now = call('TIME')
  local us = tonumber(now[1]) * 1000000 + tonumber(now[2])
  local hi = math.floor(us / 4294967296)
  generation = string.format('%08x%08x', hi, us - hi * 4294967296)
  if have[1] and not (have[1] < generation) then
    hi = tonumber(string.sub(have[1], 1, 8), 16)
    local lo = tonumber(string.sub(have[1], 9), 16) + 1
    if lo == 4294967296 then hi, lo = hi + 1, 0 end
    generation = string.format('%08x%08x', hi, lo)
  end
  local bound = ARGV[9]
  if have[2] and bound < have[2] then bound = have[2] end
  causes = ARGV[8] .. '\n' .. causes
  local cut, from = 0, 1
  for _ = 1, 32 do
    cut = string.find(causes, '\n', from, true)
    if not cut then break end
    from = cut + 1
  end
  if cut then causes = string.sub(causes, 1, cut) end
  call('HSET', KEYS[6], 'generation', generation, 'bound', bound, 'cause', ARGV[8], 'causes', causes)
  call('HSET', KEYS[2], 'digest', id)
elseif op == 'open' then
  call('HSET', KEYS[4], ARGV[8], '1')
elseif op == 'close' then
  call('HDEL', KEYS[4], ARGV[8])
end
local era = call('HGET', KEYS[5], 'era')
local known = call('GET', KEYS[3])
if era and string.sub(v, 1, 4) == era and (not known or known < v) then call('SET', KEYS[3], v) end
local number = tonumber(last[1] or '0') + 1
local message = string.format('%016x', number) .. id .. (last[2] or '0000000000000000') .. generation .. body
local mean = math.floor((tonumber(last[3] or #message) * 15 + #message) / 16)
local length = math.max(16, math.min(tonumber(ARGV[2]), math.floor(tonumber(ARGV[3]) / mean)))
call('HSET', KEYS[2], 'number', string.format('%d', number), 'id', id, 'mean', string.format('%d', mean))
call('XADD', KEYS[1], 'MAXLEN', '~', string.format('%d', length), '*', 'm', message)
call(ARGV[1], KEYS[1], message)
if op ~= 'keys' then return {number, generation} end
-- The names are read behind the invalidation and its message. A watermark goes
-- behind both, but not if there is a purge to come before it.
local named, marked = call('SMEMBERS', KEYS[6]), -2
if KEYS[7] and #named == 0 then
  local have = call('HGET', KEYS[7], ARGV[8])
  if ARGV[11] ~= '' and (not have or string.sub(have, 1, 20) < ARGV[11]) then
    marked = -1
  elseif have and string.sub(have, 22) == ARGV[10] and not (string.sub(have, 1, 20) < ARGV[9]) then
    marked = 0
  else
    call('HSET', KEYS[7], ARGV[8], ARGV[9] .. '|' .. ARGV[10])
    marked = 1
  end
end
return {number, generation, named, marked}
