#!lua flags=allow-oom
-- Removes members whose entry was seen to be absent, each only if nobody
-- registered it again meanwhile; with the last member goes the header.
-- KEYS: header, index. ARGV: id of the header as it was read before the
-- members, an id for one that has none, member, seq, member, seq ...
local removed = 0
-- A header of a release that gave none: two of them look the same, so it gets
-- one now, and its members are removed when they were read under that.
if redis.call('HSETNX', KEYS[1], 'id', ARGV[2]) == 1 then
  if redis.call('EXISTS', KEYS[2]) == 0 then redis.call('UNLINK', KEYS[1]) end
  return 0
end
-- The numbers of a header that came after the one that was read say nothing.
if (redis.call('HGET', KEYS[1], 'id') or '') == ARGV[1] then
  for from = 3, #ARGV, 1000 do
    local names, gone = {}, {}
    for i = from, math.min(from + 999, #ARGV), 2 do names[#names + 1] = ARGV[i] end
    local seqs = redis.call('HMGET', KEYS[2], unpack(names))
    for i = 1, #names do
      if seqs[i] == ARGV[from + 2 * i - 1] then gone[#gone + 1] = names[i] end
    end
    if #gone > 0 then removed = removed + redis.call('HDEL', KEYS[2], unpack(gone)) end
  end
end
if redis.call('EXISTS', KEYS[2]) == 0 then redis.call('UNLINK', KEYS[1]) end
return removed
