#!lua
-- Adds tables to what a class was seen to read. KEYS: the hash of observed
-- tables. ARGV: milliseconds that it lives from now on, most tables of a class,
-- class, table ...
local class, most = ARGV[3], tonumber(ARGV[2])
local seen, all = {}, {}
local function add(name)
  if not seen[name] and #all < most then
    seen[name] = true
    all[#all + 1] = name
  end
end
for name in string.gmatch(redis.call('HGET', KEYS[1], class) or '', '[^\n]+') do add(name) end
for i = 4, #ARGV do add(ARGV[i]) end
table.sort(all)
redis.call('HSET', KEYS[1], class, table.concat(all, '\n'))
redis.call('PEXPIRE', KEYS[1], ARGV[1])
return #all
