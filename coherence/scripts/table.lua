#!lua flags=allow-oom
-- Raises buckets of the table: b = max(b, X). It never sets base.
-- KEYS: n cells; then, on servers without allow-oom, the keys to unlink: such
-- a server refuses a full memory its first write unless that frees.
-- ARGV: X, n, the fields of each cell ("3" or "3 17"), the lengths of runs of
-- keys to unlink. Returns how many were there in each run.
local call = redis.call
local x, n = ARGV[1], tonumber(ARGV[2])
local counts, from = {}, n + 1
for r = n + 3, #ARGV do
  local run = tonumber(ARGV[r])
  counts[#counts + 1] = call('UNLINK', unpack(KEYS, from, from + run - 1))
  from = from + run
end
for i = 1, n do
  local cell, list = KEYS[i], ARGV[i + 2]
  if #list <= 2 then
    local have = call('HGET', cell, list)
    if not have or have < x then call('HSET', cell, list, x) end
  else
    local fields, set = {}, {}
    for f in string.gmatch(list, '%d+') do fields[#fields + 1] = f end
    local have = call('HMGET', cell, unpack(fields))
    for j = 1, #fields do
      if not have[j] or have[j] < x then
        set[#set + 1] = fields[j]
        set[#set + 1] = x
      end
    end
    if #set > 0 then call('HSET', cell, unpack(set)) end
  end
end
return counts
