#!lua flags=allow-oom
-- A partition leaves by which rules it is worked on. KEYS: rules, who began to
-- work on each partition last. ARGV: partition, text (a byte of version, then
-- identities of 8 bytes), and the size of the partition's map if what partitions
-- of other maps have left is to go, else ''; the step of their numbers; who
-- leaves it, or '' where nothing is to be added.
-- Whoever is not the last to have begun adds nothing: what is there and not in
-- the text goes, and no more. Returns 1 if the text was left.
local partition, text, who = ARGV[1], ARGV[2], ARGV[5]
local by = redis.call('HGET', KEYS[2], partition)
if who == '' or by and by ~= who then
  local have = redis.call('HGET', KEYS[1], partition)
  if not have then return 0 end
  local kept, among = {string.sub(text, 1, 1)}, {}
  if string.sub(have, 1, 1) == kept[1] then
    for i = 2, #text, 8 do among[string.sub(text, i, i + 7)] = true end
    for i = 2, #have, 8 do
      local id = string.sub(have, i, i + 7)
      if among[id] then kept[#kept + 1] = id end
    end
  end
  kept = table.concat(kept)
  if kept ~= have then redis.call('HSET', KEYS[1], partition, kept) end
  return 0
end
redis.call('HSET', KEYS[1], partition, text)
if ARGV[3] ~= '' then
  for _, key in ipairs(KEYS) do
    for _, field in ipairs(redis.call('HKEYS', key)) do
      local n = tonumber(field)
      if not n or math.floor(n / tonumber(ARGV[4])) ~= tonumber(ARGV[3]) then redis.call('HDEL', key, field) end
    end
  end
end
return 1
