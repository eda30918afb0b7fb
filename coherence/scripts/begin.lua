#!lua
-- SET key E NX GET EX 60 for servers before 7.0. KEYS: the entry, or the
-- ticket of a plain one. ARGV: the empty entry, seconds.
local had = redis.call('GET', KEYS[1])
if had then return had end
redis.call('SET', KEYS[1], ARGV[1], 'EX', ARGV[2])
return false
