#!lua flags=allow-oom
-- v = max, w = max, purges below w are over, and the state is published under
-- the last number. KEYS: stream, last, v, purges, source, named.
-- ARGV: channel command, v, w, version and kind, X, and of the pulse: its
-- token or '', run_id of this server, answer or '' or 'none', the token of the
-- pulse that it answers.
local call = redis.call
local function max(have, new, era)
  if era and string.sub(new, 1, 4) == era and (not have or have < new) then return new, true end
  return have or '00000000000000000000', false
end
local function be32(n)
  return string.char(math.floor(n / 16777216) % 256, math.floor(n / 65536) % 256, math.floor(n / 256) % 256, n % 256)
end
local era = call('HGET', KEYS[5], 'era')
local last = call('HMGET', KEYS[2], 'number', 'id', 'w', 'digest', 'pulse', 'token', 'life', 'run')
local v, newv = max(call('GET', KEYS[3]), ARGV[2], era)
if newv then call('SET', KEYS[3], v) end
local w, neww = max(last[3], ARGV[3], era)
if neww then call('HSET', KEYS[2], 'w', w) end
local open = call('HKEYS', KEYS[4])
for i = 1, #open do
  if string.sub(open[i], 1, 20) < w then call('HDEL', KEYS[4], open[i]) end
end
-- An answer counts only if the pulse that it answers is the last one here: then
-- nobody can take an older answer for one to a later pulse.
local same = last[7] and last[8] == ARGV[7]
if ARGV[8] == 'none' then
  call('HDEL', KEYS[2], 'asked', 'of')
elseif ARGV[8] ~= '' and same and last[6] == ARGV[9] then
  call('HSET', KEYS[2], 'asked', ARGV[8], 'of', last[5])
end
if ARGV[6] ~= '' then
  -- Numbers of another server, or of one that lost its data, are of another life.
  if not same then call('HSET', KEYS[2], 'life', ARGV[6], 'run', ARGV[7], 'of', '0') end
  call('HINCRBY', KEYS[2], 'pulse', 1)
  call('HSET', KEYS[2], 'token', ARGV[6])
end
local named = call('SMEMBERS', KEYS[6])
local names = be32(#named)
for i = 1, #named do names = names .. be32(#named[i]) .. named[i] end
local none = '0000000000000000'
local message = string.format('%016x', tonumber(last[1] or '0')) .. (last[2] or none) .. none .. none
  .. ARGV[4] .. ARGV[5] .. v .. w .. '00000000000000000000' .. (last[4] or none) .. names
call(ARGV[1], KEYS[1], message)
return {tonumber(last[1] or '0'), last[2] or none}
