-- state: the shared beginning of every script in this folder (loaded as state.lua .. script.lua; not a script itself).
--
-- Each limit is one key. An absent key is an unused limit, and every key expires once it holds nothing of interest.
--   bucket   string "cgwb" + five doubles: debt, at, limit, period, empty_at. A token bucket of `limit` tokens that
--            refills by limit/period tokens per millisecond; `at` is when it was written.
--   lease    sorted set: reservation ids, scored by the time at which their lease ends; at most `limit` at once.
--   alert    string "percentage": beside a quota, the highest threshold that an alert was sent for in this interval.
--
-- Arithmetic: debt is counted in token*ms, so that one token is `period` of debt and one millisecond of refill is
-- `limit` of debt. Everything is then an integer, and doubles are exact for integers below 2^53:
--   limit * period <= 2^51             checked when a limit is loaded (MAX_TOKEN_MS in cgw/model.py)
--   debt           <= 2 * limit * period = 2^52    settle caps the overdraft at two full buckets
-- so every sum or difference of a debt and one claim stays below 2^53. Only quotients are rounded.
--
-- Time is the server's own, in ms. If the clock steps back, buckets do not refill until it moves forward again.

local SLACK_MS = 1000 -- keys outlive their contents by this, so that rounding never ends a limit early
local floor, ceil, max, min = math.floor, math.ceil, math.max, math.min
local call, pack, unpack_numbers = redis.call, struct.pack, struct.unpack

local function now_ms()
  local time = call('TIME')
  return time[1] * 1000 + floor(time[2] / 1000)
end

-- Format a number as part of an argument. Lua's own conversion keeps 14 digits only; a time in ms may have more.
local function text(number)
  return string.format('%.0f', number)
end

-- Run `command` on `key`. A key of another type is an error that names the key, which Redis's own message does not.
local function read(command, key, ...)
  local reply = redis.pcall(command, key, ...)
  if type(reply) == 'table' and reply.err then error('key ' .. key .. ' holds no limit: ' .. reply.err, 0) end
  return reply
end

-- Return the bucket in `key` as of now: debt, the limit and period it was written with, empty_at, and whether it was
-- written later than now (the clock stepped back). Debt is nil when the key is absent.
local function load_bucket(key, now)
  local state = read('GET', key)
  if not state then return nil end
  if #state ~= 44 or state:sub(1, 4) ~= 'cgwb' then error('key ' .. key .. ' holds no bucket', 0) end
  -- Doubles in binary: formatting and parsing numbers as text took half the time of a script.
  local debt, at, limit, period, empty_at = unpack_numbers('<ddddd', state, 5)
  local elapsed = now - at
  if elapsed > 0 then -- a negative `elapsed` would add debt
    -- Compare before multiplying: after a long absence, elapsed * limit could exceed 2^53. Below debt / limit it can't.
    if elapsed >= debt / limit then debt = 0 else debt = debt - elapsed * limit end
  end
  return debt, limit, period, empty_at, elapsed < 0
end

-- Convert a debt to another limit or period: used tokens stay used (rounded up), but at most one full bucket of them,
-- so that after lowering a limit no wait is longer than one period.
local function convert_debt(debt, old_limit, old_period, limit, period)
  if old_limit == limit and old_period == period then return debt end
  return min(ceil(debt / old_period), limit) * period
end

local function save_bucket(key, now, debt, limit, period, empty_at)
  if debt <= 0 then
    call('DEL', key)
  else
    -- debt / limit is the time until the debt is paid off: after that the key says nothing any more.
    -- As a number: commands get all digits of one (%.17g), and formatting it here would take as long as half the command.
    call('SET', key, pack('<c4ddddd', 'cgwb', debt, now, limit, period, empty_at), 'PX', ceil(debt / limit) + SLACK_MS)
  end
end

-- Return remaining tokens, ms until the bucket is full, ms until one more token is there (0 when it is full).
local function measure_bucket(debt, limit, period)
  local full = limit * period
  local remaining = max(0, floor((full - debt) / period)) -- negative when overdrawn
  if debt <= 0 then return remaining, 0, 0 end
  -- One more token is there as soon as the debt has sunk to full - (remaining + 1) * period.
  return remaining, ceil(debt / limit), ceil((debt - (full - (remaining + 1) * period)) / limit)
end

-- Return the highest of `thresholds` (percentages, as "90 95 100") that `used` of `limit` has reached, if no alert was
-- sent for it in this interval; otherwise 0. `key` remembers it for `period` ms from the interval's first alert.
local function cross(key, thresholds, used, limit, period)
  local reached = 0
  for part in string.gmatch(thresholds, '%d+') do
    local threshold = tonumber(part)
    -- Division is correctly rounded, so equal fractions give equal doubles: 95 of 100 does reach 95 %.
    if threshold > reached and used / limit >= threshold / 100 then reached = threshold end
  end
  if reached == 0 then return 0 end
  local alerted = read('GET', key)
  if not alerted then
    call('SET', key, reached, 'PX', text(period))
  elseif reached > (tonumber(alerted) or 0) then
    call('SET', key, reached, 'KEEPTTL') -- a higher threshold does not prolong the interval
  else
    return 0
  end
  return reached
end
