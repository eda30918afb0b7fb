#!lua flags=allow-oom
-- Removes members whose entry was seen to be absent, each only if nobody
-- registered it again meanwhile; with the last member goes the header.
-- KEYS: header, index. ARGV: member, seq, member, seq ...
local removed = 0
for i = 1, #ARGV, 2 do
  if redis.call('HGET', KEYS[2], ARGV[i]) == ARGV[i + 1] then
    removed = removed + redis.call('HDEL', KEYS[2], ARGV[i])
  end
end
if redis.call('EXISTS', KEYS[2]) == 0 then redis.call('UNLINK', KEYS[1]) end
return removed
