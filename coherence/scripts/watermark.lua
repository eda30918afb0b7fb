#!lua flags=allow-oom
-- KEYS: the watermarks of a master. ARGV: partition, position, run_id. Never
-- lowers what was written under the same run_id.
local have = redis.call('HGET', KEYS[1], ARGV[1])
if have and string.sub(have, 22) == ARGV[3] and not (string.sub(have, 1, 20) < ARGV[2]) then return 0 end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2] .. '|' .. ARGV[3])
return 1
