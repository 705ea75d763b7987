-- state: what every script of this room begins with (loaded as state.lua .. script.lua). Not a script of its own.
--
-- A limit is one key; an absent key is an unused limit, and every key expires once it says nothing any more.
--   bucket   string "debt at limit period empty_at": a token bucket of `limit` tokens that refills by limit/period
--            a millisecond. Debt is counted in token*ms (one token = `period` of debt), so that refill is an
--            integer too: `limit` of debt a millisecond. All numbers are integers below 2^53, where doubles are
--            exact: limit * period <= 2^51 (checked by cgw when a limit is loaded), debt <= 2 * limit * period.
--            `empty_at` is when a claim last found no debt: time had paid off all claims before it.
--   window   string "id used period": `limit` per aligned window of `period` ms; id = floor(now / period).
--   lease    sorted set of reservation ids by the time their lease ends: at most `limit` at once.
--   notice   string "percentage": beside a quota, the highest threshold that somebody was told of.
-- Time is the server's own; a clock that steps back gives no refill and no fresh window.

local SLACK_MS = 1000
local format = string.format -- '%.0f' everywhere: Lua's own conversion of numbers to text stops at 14 digits

local function now_ms()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

-- What `command` reads from `key`; a key of another type is an error that names it.
local function read(command, key, ...)
  local reply = redis.pcall(command, key, ...)
  if type(reply) == 'table' and reply.err then error('key ' .. key .. ' holds no limit: ' .. reply.err, 0) end
  return reply
end

-- The bucket in `key` as of now, in the numbers it was written with; nil when it is absent (no debt).
local function load_bucket(key, now)
  local state = read('GET', key)
  if not state then return nil end
  local debt, at, limit, period, empty_at = string.match(state, '^(%d+) (%d+) (%d+) (%d+) (%d+)$')
  if not debt then error('key ' .. key .. ' holds no bucket', 0) end
  debt, limit = tonumber(debt), tonumber(limit)
  local elapsed = now - tonumber(at)
  if elapsed > 0 then
    -- Divide before multiplying: the product of a long absence could leave the exact range.
    if elapsed >= debt / limit then debt = 0 else debt = debt - elapsed * limit end
  end
  return {debt = debt, limit = limit, period = tonumber(period), empty_at = tonumber(empty_at), is_ahead = elapsed < 0}
end

-- The same bucket under other numbers: whole tokens of debt are kept (rounded up), at most one full bucket.
local function convert_bucket(bucket, limit, period)
  if bucket.limit ~= limit or bucket.period ~= period then
    bucket.debt = math.min(math.ceil(bucket.debt / bucket.period), limit) * period
    bucket.limit, bucket.period = limit, period
  end
end

local function save_bucket(key, bucket, now)
  if bucket.debt <= 0 then
    redis.call('DEL', key)
  else
    local limit = bucket.limit
    redis.call('SET', key, format('%.0f %.0f %.0f %.0f %.0f', bucket.debt, now, limit, bucket.period, bucket.empty_at),
      'PX', format('%.0f', math.ceil(bucket.debt / limit) + SLACK_MS))
  end
end

-- remaining tokens, ms until full, ms until one token more (0 when full)
local function measure_bucket(debt, limit, period)
  local full = limit * period
  local remaining = math.max(0, math.floor((full - debt) / period))
  if debt <= 0 then return remaining, 0, 0 end
  return remaining, math.ceil(debt / limit), math.ceil((debt - (full - (remaining + 1) * period)) / limit)
end

-- used, id of the window it counts in
local function load_window(key, now, period)
  local id = math.floor(now / period)
  local state = read('GET', key)
  if not state then return 0, id end
  local old_id, used, old_period = string.match(state, '^(%d+) (%d+) (%d+)$')
  if not old_id then error('key ' .. key .. ' holds no window', 0) end
  old_id, used, old_period = tonumber(old_id), tonumber(used), tonumber(old_period)
  if old_period ~= period then return used, id end -- the length was changed: what was used counts on
  if old_id == id or old_id == id + 1 then return used, old_id end -- id + 1: the clock stepped back over an edge
  return 0, id
end

local function save_window(key, used, id, now, period)
  if used <= 0 then
    redis.call('DEL', key)
  else
    redis.call('SET', key, format('%.0f %.0f %.0f', id, used, period),
      'PX', format('%.0f', (id + 1) * period - now + SLACK_MS))
  end
end

-- The highest of `thresholds` (percentages in a text) that `used` of `limit` has reached, if nobody was told of it yet;
-- else 0. `key` keeps what was told, for `period` ms from the first of an interval on.
local function cross(key, thresholds, used, limit, period)
  local reached = 0
  for text in string.gmatch(thresholds, '%d+') do
    local threshold = tonumber(text)
    -- Both quotients are the nearest doubles, so they are equal where the fractions are.
    if threshold > reached and used / limit >= threshold / 100 then reached = threshold end
  end
  if reached == 0 then return 0 end
  local told = read('GET', key)
  if not told then
    redis.call('SET', key, reached, 'PX', format('%.0f', period))
  elseif reached > (tonumber(told) or 0) then
    redis.call('SET', key, reached, 'KEEPTTL')
  else
    return 0
  end
  return reached
end
