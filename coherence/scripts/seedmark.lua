#!lua flags=allow-oom
-- Seed, step 1: marks the cells that have no base, or one of an older era.
-- KEYS: cells. ARGV: mark, era. Returns the indices of what was marked.
local marked = {}
for i = 1, #KEYS do
  local base = redis.call('HGET', KEYS[i], 'base')
  if not base or string.sub(base, 1, 4) < ARGV[2] then
    redis.call('HSET', KEYS[i], 'seed', ARGV[1])
    marked[#marked + 1] = i
  end
end
return marked
