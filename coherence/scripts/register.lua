#!lua
-- Registers a member under a name. KEYS: header, index, cell, and on one node
-- the floor. ARGV: member, stamp, field, id of a new header. Returns the number
-- of a Reason.
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
-- The numbers of a header begin at 1 again, so that it needs a name: a pruner
-- that paused must not take a new registration for the one that it has read.
if not header then redis.call('HSET', KEYS[1], 'pos', pos, 'id', ARGV[4]) end
local seq = redis.call('HINCRBY', KEYS[1], 'seq', 1)
redis.call('HSET', KEYS[2], ARGV[1], string.format('%d', seq))
return 0
