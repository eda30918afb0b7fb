#!lua
-- Adds what one client has read to the hottest keys of a class. KEYS: sorted
-- set by the short half-life, the one by the long. ARGV: most members,
-- milliseconds that they live from now on, half-lives in seconds (short, long),
-- then a key and its reads, repeated.
--
-- A score is log2 of the decayed count as it would have been at the epoch:
-- log2(sum of reads * 2^(t/half)). It says the same for ever, so that nothing
-- has to be rewritten for it to decay (forward decay: Cormode et al., 2009).
local t = redis.call('TIME')
local now = tonumber(t[1]) + tonumber(t[2]) / 1000000
local function log2(x) return math.log(x) / math.log(2) end
for k = 1, 2 do
  local at = now / tonumber(ARGV[2 + k])
  for i = 5, #ARGV, 2 do
    local new = log2(tonumber(ARGV[i + 1])) + at
    local old = redis.call('ZSCORE', KEYS[k], ARGV[i])
    if old then
      old = tonumber(old)
      local most, least = math.max(old, new), math.min(old, new)
      new = most + log2(1 + 2 ^ (least - most))
    end
    redis.call('ZADD', KEYS[k], string.format('%.17g', new), ARGV[i])
  end
  -- Who is warm for the one need not be for the other.
  redis.call('ZREMRANGEBYRANK', KEYS[k], 0, -tonumber(ARGV[1]) - 1)
  redis.call('PEXPIRE', KEYS[k], ARGV[2])
end
return redis.call('ZCARD', KEYS[1])
