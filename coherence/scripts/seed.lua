#!lua flags=allow-oom
-- Seed, step 3: sets base where the mark is still ours. KEYS: cells.
-- ARGV: mark, bound. Returns how many.
local seeded = 0
for i = 1, #KEYS do
  local have = redis.call('HMGET', KEYS[i], 'seed', 'base')
  if have[1] == ARGV[1] then
    if not have[2] or have[2] < ARGV[2] then redis.call('HSET', KEYS[i], 'base', ARGV[2]) end
    redis.call('HDEL', KEYS[i], 'seed')
    seeded = seeded + 1
  end
end
return seeded
