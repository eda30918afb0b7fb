#!lua flags=no-writes
-- What the worker partitions left about their rules. KEYS: rules. Returns each
-- text once, with the partitions that left it behind it: they are alike but for
-- the moments in which rules change.
local all = redis.call('HGETALL', KEYS[1])
local at, out = {}, {}
for i = 1, #all, 2 do
  local o = at[all[i + 1]]
  if not o then
    o = {all[i + 1]}
    at[all[i + 1]] = o
    out[#out + 1] = o
  end
  o[#o + 1] = all[i]
end
return out
