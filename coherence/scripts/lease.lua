#!lua
-- Replaces the lease of an entry, and nothing else: neither its incarnation
-- nor its TTL. KEYS: the entry, or the ticket of a plain one. ARGV: the lease
-- that must be there (16 bytes), the next one (16 bytes), the incarnation that
-- must be there ('' for any). Returns 1 if it did.
local key, seen, want = KEYS[1], ARGV[1], ARGV[3]
local head = redis.pcall('GETRANGE', key, 0, 103)
if type(head) ~= 'string' or #head < 10 then return 0 end
local version, state = string.byte(head, 1, 2)
if version ~= 1 then return 0 end
local offset
if state == 69 and (#head == 10 or #head == 26) then
  offset = 10
elseif (state == 86 or state == 83) and #head == 104 then
  offset = 88
else
  return 0
end
if want ~= '' and string.sub(head, 3, 10) ~= want then return 0 end
local have = string.sub(head, offset + 1, offset + 16)
if have == '' then have = string.rep('\0', 16) end
if have ~= seen then return 0 end
redis.call('SETRANGE', key, offset, ARGV[2])
return 1
