#!lua flags=allow-oom
-- Gives a class record back what control forgot, never lower.
-- KEYS: class record, last. ARGV: generation, bound, cause, digest.
local have = redis.call('HMGET', KEYS[1], 'generation', 'bound')
if not have[1] or have[1] < ARGV[1] then redis.call('HSET', KEYS[1], 'generation', ARGV[1], 'cause', ARGV[3]) end
if not have[2] or have[2] < ARGV[2] then redis.call('HSET', KEYS[1], 'bound', ARGV[2]) end
redis.call('HSET', KEYS[2], 'digest', ARGV[4])
return 0
