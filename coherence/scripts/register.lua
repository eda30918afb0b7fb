#!lua
-- Registers a member under a name. KEYS: header, index, cell, and on one node
-- the floor. ARGV: member, stamp, field. Returns the number of a Reason.
local stamp = ARGV[2]
local pos = ''
for i = 3, #KEYS do
  local field = i == 3 and ARGV[3] or '0'
  local cell = redis.call('HMGET', KEYS[i], 'base', field)
  if not cell[1] or string.sub(cell[1], 1, 4) < string.sub(stamp, 1, 4) then return 4 end
  if pos < cell[1] then pos = cell[1] end
  if cell[2] and pos < cell[2] then pos = cell[2] end
end
local header = redis.call('HGET', KEYS[1], 'pos')
if header then pos = header end
if not (pos < stamp) then return 5 end
if not header then redis.call('HSET', KEYS[1], 'pos', pos) end
local seq = redis.call('HINCRBY', KEYS[1], 'seq', 1)
redis.call('HSET', KEYS[2], ARGV[1], string.format('%d', seq))
return 0
