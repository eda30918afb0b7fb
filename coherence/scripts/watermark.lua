#!lua flags=allow-oom
-- KEYS: the watermarks of a master. ARGV: partition, position, run_id, the
-- position that must be there or ''. Never lowers what was written under the
-- same run_id. Returns 1 written, 0 not needed, -1 less is there than must be.
local have = redis.call('HGET', KEYS[1], ARGV[1])
if ARGV[4] ~= '' and (not have or string.sub(have, 1, 20) < ARGV[4]) then return -1 end
if have and string.sub(have, 22) == ARGV[3] and not (string.sub(have, 1, 20) < ARGV[2]) then return 0 end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2] .. '|' .. ARGV[3])
return 1
