#!lua flags=allow-oom
-- A partition leaves by which rules it is worked on. KEYS: rules. ARGV:
-- partition, text, and the size of the partition's map if what partitions of
-- other maps have left is to go, else ''; the step of their numbers.
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
if ARGV[3] ~= '' then
  for _, field in ipairs(redis.call('HKEYS', KEYS[1])) do
    local n = tonumber(field)
    if not n or math.floor(n / tonumber(ARGV[4])) ~= tonumber(ARGV[3]) then redis.call('HDEL', KEYS[1], field) end
  end
end
return 1
