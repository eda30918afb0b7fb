#!lua flags=allow-oom
-- Step 1 of a purge on one tag: raises its bucket and, if there is one, its
-- header. KEYS: cell, header. ARGV: X, field.
local x = ARGV[1]
local have = redis.call('HGET', KEYS[1], ARGV[2])
if not have or have < x then redis.call('HSET', KEYS[1], ARGV[2], x) end
have = redis.call('HGET', KEYS[2], 'pos')
if have and have < x then redis.call('HSET', KEYS[2], 'pos', x) end
return 0
