#!lua flags=no-writes
-- Reads the control data at one moment. KEYS: source, v, purges, last, named,
-- stream, class records.
local tail = redis.call('XREVRANGE', KEYS[6], '+', '-', 'COUNT', 1)
local classes = {}
for i = 7, #KEYS do
  classes[i - 6] = redis.call('HMGET', KEYS[i], 'generation', 'bound', 'cause')
end
return {
  redis.call('HMGET', KEYS[1], 'era', 'system', 'timeline', 'buckets', 'layout'),
  redis.call('GET', KEYS[2]),
  redis.call('HGETALL', KEYS[3]),
  redis.call('HMGET', KEYS[4], 'number', 'id', 'w', 'digest'),
  redis.call('SMEMBERS', KEYS[5]),
  tail[1] and tail[1][1] or '0-0',
  classes,
}
