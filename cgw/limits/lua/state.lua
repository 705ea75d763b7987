-- state: what every script of this room begins with (loaded as state.lua .. script.lua). Not a script of its own.
--
-- A limit is one key; an absent key is an unused limit, and every key expires once it says nothing any more.
--   bucket   string "cgwb" and five doubles: debt, at, limit, period, empty_at: a token bucket of `limit` tokens that
--            refills by limit/period a millisecond. Debt is counted in token*ms (one token = `period` of debt), so that
--            refill is an integer too: `limit` of debt a millisecond. All numbers are integers below 2^53, where
--            doubles are exact: limit * period <= 2^51 (checked by cgw when a limit is loaded), debt <= 2 * limit *
--            period. `empty_at` is when a claim last found no debt: time had paid off all claims before it.
--   window   string "cgww" and three doubles: id, used, period: `limit` per aligned window of `period` ms;
--            id = floor(now / period).
--   lease    sorted set of reservation ids by the time their lease ends: at most `limit` at once.
--   notice   string "percentage": beside a quota, the highest threshold that somebody was told of.
-- Numbers are kept as they are in memory: writing and reading them as text was half the time of a script.
-- Time is the server's own; a clock that steps back gives no refill and no fresh window.

local SLACK_MS = 1000
local floor, ceil, max, min = math.floor, math.ceil, math.max, math.min
local call, pack, unpack_numbers = redis.call, struct.pack, struct.unpack

local function now_ms()
  local time = call('TIME')
  return time[1] * 1000 + floor(time[2] / 1000)
end

-- A number as a command takes it: Lua's own conversion to text stops at 14 digits.
local function text(number)
  return string.format('%.0f', number)
end

-- What `command` reads from `key`; a key of another type is an error that names it.
local function read(command, key, ...)
  local reply = redis.pcall(command, key, ...)
  if type(reply) == 'table' and reply.err then error('key ' .. key .. ' holds no limit: ' .. reply.err, 0) end
  return reply
end

-- The bucket in `key` as of now: debt, the limit and period that it was written with, empty_at, and whether it was
-- written after now (the clock stepped back). Debt is nil when the key is absent.
local function load_bucket(key, now)
  local state = read('GET', key)
  if not state then return nil end
  if #state ~= 44 or state:sub(1, 4) ~= 'cgwb' then error('key ' .. key .. ' holds no bucket', 0) end
  local debt, at, limit, period, empty_at = unpack_numbers('<ddddd', state, 5)
  local elapsed = now - at
  if elapsed > 0 then
    -- Divide before multiplying: the product of a long absence could leave the exact range.
    if elapsed >= debt / limit then debt = 0 else debt = debt - elapsed * limit end
  end
  return debt, limit, period, empty_at, elapsed < 0
end

-- A bucket's debt under other numbers: whole tokens are kept (rounded up), at most one full bucket.
local function convert_debt(debt, old_limit, old_period, limit, period)
  if old_limit == limit and old_period == period then return debt end
  return min(ceil(debt / old_period), limit) * period
end

local function save_bucket(key, now, debt, limit, period, empty_at)
  if debt <= 0 then
    call('DEL', key)
  else
    call('SET', key, pack('<c4ddddd', 'cgwb', debt, now, limit, period, empty_at), 'PX', text(ceil(debt / limit) + SLACK_MS))
  end
end

-- remaining tokens, ms until full, ms until one token more (0 when full)
local function measure_bucket(debt, limit, period)
  local full = limit * period
  local remaining = max(0, floor((full - debt) / period))
  if debt <= 0 then return remaining, 0, 0 end
  return remaining, ceil(debt / limit), ceil((debt - (full - (remaining + 1) * period)) / limit)
end

-- used, id of the window it counts in
local function load_window(key, now, period)
  local id = floor(now / period)
  local state = read('GET', key)
  if not state then return 0, id end
  if #state ~= 28 or state:sub(1, 4) ~= 'cgww' then error('key ' .. key .. ' holds no window', 0) end
  local old_id, used, old_period = unpack_numbers('<ddd', state, 5)
  if old_period ~= period then return used, id end -- the length was changed: what was used counts on
  if old_id == id or old_id == id + 1 then return used, old_id end -- id + 1: the clock stepped back over an edge
  return 0, id
end

local function save_window(key, used, id, now, period)
  if used <= 0 then
    call('DEL', key)
  else
    call('SET', key, pack('<c4ddd', 'cgww', id, used, period), 'PX', text((id + 1) * period - now + SLACK_MS))
  end
end

-- The highest of `thresholds` (percentages in a text) that `used` of `limit` has reached, if nobody was told of it yet;
-- else 0. `key` keeps what was told, for `period` ms from the first of an interval on.
local function cross(key, thresholds, used, limit, period)
  local reached = 0
  for part in string.gmatch(thresholds, '%d+') do
    local threshold = tonumber(part)
    -- Both quotients are the nearest doubles, so they are equal where the fractions are.
    if threshold > reached and used / limit >= threshold / 100 then reached = threshold end
  end
  if reached == 0 then return 0 end
  local told = read('GET', key)
  if not told then
    call('SET', key, reached, 'PX', text(period))
  elseif reached > (tonumber(told) or 0) then
    call('SET', key, reached, 'KEEPTTL')
  else
    return 0
  end
  return reached
end
