#!lua flags=allow-oom
-- Writes the source record. KEYS: source, v, last. ARGV: era (4 hex), system,
-- timeline, buckets, layout, v of the era, digest.
-- Returns 1 written, 0 the same, -1 what is recorded is newer.
local have = redis.call('HMGET', KEYS[1], 'era', 'system', 'timeline')
if have[1] then
  if ARGV[1] < have[1] then return -1 end
  if have[2] == ARGV[2] and tonumber(ARGV[3]) < tonumber(have[3]) then return -1 end
  if have[1] == ARGV[1] then
    if have[2] == ARGV[2] and have[3] == ARGV[3] then return 0 end
    return -1
  end
end
redis.call('HSET', KEYS[1], 'era', ARGV[1], 'system', ARGV[2], 'timeline', ARGV[3], 'buckets', ARGV[4], 'layout', ARGV[5])
local v = redis.call('GET', KEYS[2])
if not v or v < ARGV[6] then redis.call('SET', KEYS[2], ARGV[6]) end
redis.call('HSET', KEYS[3], 'digest', ARGV[7])
return 1
