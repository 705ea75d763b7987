/* A minimal HTTP/2 client for the load generator: prior knowledge, clear text, requests of one HEADERS and one DATA frame.
 *
 * A link is one connection, with many streams. Requests wait while the connection's window for sending is too small. Input
 * is acknowledged with WINDOW_UPDATE as it is read, so a server never waits for a window. A link that was closed, or that
 * received GOAWAY, is not opened again. Sections are those of RFC 9113. */
#define FRAME_LIMIT 16384 /* the default SETTINGS_MAX_FRAME_SIZE, which is not changed; also the limit of request bodies */
#define RECEIVE_WINDOW (16 << 20)
#define DEFAULT_WINDOW 65535
#define FRAME_HEAD 9

enum frame_type { F_DATA, F_HEADERS, F_PRIORITY, F_RST_STREAM, F_SETTINGS, F_PUSH, F_PING, F_GOAWAY, F_WINDOW_UPDATE };
enum frame_flag { END_STREAM = 1, ACK = 1, END_HEADERS = 4, PADDED = 8, HAS_PRIORITY = 32 };
enum setting { HEADER_TABLE_SIZE = 1, ENABLE_PUSH = 2, INITIAL_WINDOW_SIZE = 4 };

struct stream {
    uint32_t id; /* 0: not open */
    int has_ended;
    long unacknowledged;
    void *owner;
    const char *block, *body; /* the header block, and the body right behind it */
    size_t block_len, body_len;
    struct stream *next_waiting;
};

struct link {
    int fd, is_open, is_reading, is_leaving, has_received, watches_output;
    uint32_t last_id;
    int64_t send_window;
    long unacknowledged;
    char *in, *out;
    size_t in_len, in_room, out_len, out_at, out_room, streams_room;
    struct stream **streams; /* by (id - 1) / 2 */
    struct stream *waiting;
};

/* Called for the events of a stream; the stream may be dropped within each of them. */
static void on_stream_status(struct stream *s, int status);
static void on_stream_data(struct stream *s, const char *at, size_t length, int64_t now);
static void on_stream_end(struct stream *s, int64_t now);
static void on_stream_broken(struct stream *s, int is_refused);

/* --- output */
static char *put_number(char *at, uint32_t value, int bytes) {
    while (bytes--) *at++ = value >> 8 * bytes;
    return at;
}

static uint32_t get_number(const char *at, int bytes) {
    uint32_t value = 0;
    while (bytes--) value = value << 8 | (uint8_t)*at++;
    return value;
}

/* Append a literal field without indexing and without Huffman code (RFC 7541 section 6.2.2); return the end. */
static char *put_field(char *at, const char *name, size_t name_len, const char *value, size_t value_len) {
    struct { const char *text; size_t length; } parts[] = {{name, name_len}, {value, value_len}};
    *at++ = 0;
    for (int i = 0; i < 2; i++) {
        size_t left = parts[i].length;
        *at++ = left < 127 ? left : 127;
        if (left >= 127) {
            for (left -= 127; left >= 128; left >>= 7) *at++ = left | 128;
            *at++ = left;
        }
        memcpy(at, parts[i].text, parts[i].length);
        at += parts[i].length;
    }
    return at;
}

static void link_append(struct link *l, const char *bytes, size_t length) {
    if (l->out_len + length > l->out_room) l->out = grow(l->out, l->out_room = 2 * (l->out_len + length));
    memcpy(l->out + l->out_len, bytes, length);
    l->out_len += length;
}

static void put_frame(struct link *l, enum frame_type type, int flags, uint32_t stream, const char *payload, size_t length) {
    char head[FRAME_HEAD], *at = put_number(head, length, 3);
    at = put_number(at, type, 1);
    at = put_number(at, flags, 1);
    put_number(at, stream, 4);
    link_append(l, head, sizeof head);
    if (length) link_append(l, payload, length);
}

static void put_window_update(struct link *l, uint32_t stream, uint32_t increment) {
    char payload[4];
    put_number(payload, increment, 4);
    put_frame(l, F_WINDOW_UPDATE, 0, stream, payload, sizeof payload);
}

/* Send pending output. An error is not handled here: the socket becomes readable, and reading ends the link. */
static void link_flush(struct link *l) {
    while (l->out_at < l->out_len) {
        ssize_t n = send(l->fd, l->out + l->out_at, l->out_len - l->out_at, MSG_NOSIGNAL);
        if (n < 0) break;
        l->out_at += n;
    }
    int is_blocked = l->out_at < l->out_len;
    if (!is_blocked) l->out_at = l->out_len = 0;
    if (is_blocked != l->watches_output) watch(epoll, EPOLL_CTL_MOD, l->fd, EPOLLIN | (is_blocked ? EPOLLOUT : 0), l);
    l->watches_output = is_blocked;
}

/* Connect, and send the preface (section 3.4). While the socket is connecting, send() fails with EAGAIN. */
static void link_open(struct link *l, const struct sockaddr_in *to) {
    l->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (l->fd < 0) die("socket");
    set_nodelay(l->fd);
    l->is_open = 1;
    l->send_window = DEFAULT_WINDOW;
    watch(epoll, EPOLL_CTL_ADD, l->fd, EPOLLIN, l);
    connect(l->fd, (const struct sockaddr *)to, sizeof *to); /* an error is seen when the socket becomes readable */
    link_append(l, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 24);
    static const uint32_t settings[][2] = {{HEADER_TABLE_SIZE, 0}, {ENABLE_PUSH, 0}, {INITIAL_WINDOW_SIZE, RECEIVE_WINDOW}};
    char payload[18], *at = payload;
    for (int i = 0; i < 3; i++) at = put_number(put_number(at, settings[i][0], 2), settings[i][1], 4);
    put_frame(l, F_SETTINGS, 0, 0, payload, sizeof payload);
    put_window_update(l, 0, RECEIVE_WINDOW - DEFAULT_WINDOW);
}

/* --- streams */
static void send_waiting(struct link *l) {
    struct stream *s;
    while ((s = l->waiting) && (int64_t)s->body_len <= l->send_window) {
        l->waiting = s->next_waiting;
        s->id = l->last_id = l->last_id ? l->last_id + 2 : 1;
        size_t place = s->id / 2;
        if (place >= l->streams_room) l->streams = grow(l->streams, (l->streams_room = 2 * place + 64) * sizeof *l->streams);
        l->streams[place] = s;
        put_frame(l, F_HEADERS, END_HEADERS, s->id, s->block, s->block_len);
        put_frame(l, F_DATA, END_STREAM, s->id, s->body, s->body_len);
        l->send_window -= s->body_len;
    }
    if (!l->is_reading) link_flush(l);
}

/* Send the request of a stream as soon as the window allows. The request must not change until the stream is dropped.
 * 0: the link takes no new streams. */
static int link_request(struct link *l, struct stream *s) {
    if (!l->is_open || l->is_leaving) return 0;
    s->id = s->has_ended = s->unacknowledged = 0;
    s->next_waiting = NULL;
    struct stream **last = &l->waiting;
    while (*last) last = &(*last)->next_waiting;
    *last = s;
    send_waiting(l);
    return 1;
}

/* Forget a stream, with RST_STREAM if it has not ended. */
static void link_drop(struct link *l, struct stream *s) {
    if (s->id) {
        l->streams[s->id / 2] = NULL;
        if (!s->has_ended && l->is_open) {
            put_frame(l, F_RST_STREAM, 0, s->id, "\0\0\0\x08", 4); /* CANCEL */
            if (!l->is_reading) link_flush(l);
        }
        s->id = 0;
        return;
    }
    for (struct stream **at = &l->waiting; *at; at = &(*at)->next_waiting)
        if (*at == s) {
            *at = s->next_waiting;
            return;
        }
}

static struct stream *find_stream(struct link *l, uint32_t id) {
    return id % 2 && id <= l->last_id ? l->streams[id / 2] : NULL;
}

static void break_stream(struct stream *s, int is_refused) {
    s->has_ended = 1;
    on_stream_broken(s, is_refused);
}

/* Close the connection; all of its streams are broken. */
static void link_break(struct link *l) {
    l->is_open = 0;
    close(l->fd);
    for (uint32_t id = 1; id <= l->last_id; id += 2)
        if (l->streams[id / 2]) break_stream(l->streams[id / 2], !l->has_received);
    while (l->waiting) break_stream(l->waiting, 1);
}

/* --- input */

/* Return the status of a response, its first field (section 8.3.2), or -1. With a table of size 0, it is an entry of the
 * static table, or a literal whose name is one (RFC 7541 section 6). */
static int status_of(const char *block, size_t length) {
    static const int known[] = {200, 204, 206, 304, 400, 404, 500}; /* entries 8 to 14 */
    const uint8_t *at = (const uint8_t *)block, *end = at + length;
    while (at < end && (*at & 0xe0) == 0x20) /* a size update, of one byte or more */
        if ((*at++ & 0x1f) == 0x1f)
            while (at < end && *at++ & 0x80) continue;
    if (end - at >= 1 && *at >= 0x88 && *at <= 0x8e) return known[*at - 0x88];
    if (end - at < 3 || *at & 0x80) return -1;
    int name = *at & 0x40 ? *at & 0x3f : *at & 0x0f, size = at[1] & 0x7f, value = 0;
    if (name < 8 || name > 14 || size > end - at - 2) return -1;
    if (!(at[1] & 0x80)) {
        for (at += 2; size--; at++) value = value * 10 + *at - '0';
        return value;
    }
    /* Huffman code: 0, 1 and 2 have 5 bits (0 to 2), 3 to 9 have 6 (25 to 31). */
    uint32_t bits = get_number((const char *)at + 2, size < 4 ? size : 4) << (size < 4 ? 32 - 8 * size : 0);
    for (int digit = 0; digit < 3; digit++) {
        int is_short = bits >> 27 <= 2;
        value = value * 10 + (is_short ? bits >> 27 : (bits >> 26) - 22);
        bits <<= is_short ? 5 : 6;
    }
    return value;
}

/* Give back the window of received data, half a window at a time: the server never has less than the other half. */
static void acknowledge(struct link *l, struct stream *s, size_t length) {
    if ((l->unacknowledged += length) >= RECEIVE_WINDOW / 2) {
        put_window_update(l, 0, l->unacknowledged);
        l->unacknowledged = 0;
    }
    if (s && (s->unacknowledged += length) >= RECEIVE_WINDOW / 2) {
        put_window_update(l, s->id, s->unacknowledged);
        s->unacknowledged = 0;
    }
}

static void on_frame(struct link *l, int type, int flags, uint32_t id, const char *payload, size_t length, int64_t now) {
    struct stream *s = find_stream(l, id);
    size_t padding = 0, whole = length;
    if ((type == F_DATA || type == F_HEADERS) && flags & PADDED && length) {
        padding = (uint8_t)*payload++;
        length = padding < length ? length - 1 - padding : 0;
    }
    switch (type) {
    case F_DATA:
        acknowledge(l, s, whole);
        if (s && length) on_stream_data(s, payload, length, now);
        break;
    case F_HEADERS:
        if (flags & HAS_PRIORITY && length >= 5) payload += 5, length -= 5;
        /* Trailers have no status; they end the stream. CONTINUATION frames need no parsing: the status comes first. */
        if (s && !(flags & END_STREAM && status_of(payload, length) < 0)) on_stream_status(s, status_of(payload, length));
        break;
    case F_RST_STREAM:
        if (s) break_stream(s, 0);
        break;
    case F_SETTINGS:
        if (!(flags & ACK)) put_frame(l, F_SETTINGS, ACK, 0, NULL, 0);
        break;
    case F_PING:
        if (!(flags & ACK)) put_frame(l, F_PING, ACK, 0, payload, length);
        break;
    case F_GOAWAY:
        l->is_leaving = 1;
        /* The server has not processed streams after the one that it names (section 6.8). */
        for (uint32_t at = length < 4 ? 1 : (get_number(payload, 4) + 1) | 1; at <= l->last_id; at += 2)
            if (l->streams[at / 2]) break_stream(l->streams[at / 2], 1);
        while (l->waiting) break_stream(l->waiting, 1);
        break;
    case F_WINDOW_UPDATE:
        if (!id && length == 4) l->send_window += get_number(payload, 4);
        send_waiting(l);
        break;
    default:
        break; /* PRIORITY, CONTINUATION and unknown types */
    }
    /* Looked up again: the stream may have been dropped, and its owner may already use another one. */
    if ((type == F_DATA || type == F_HEADERS) && flags & END_STREAM && s && find_stream(l, id) == s) {
        s->has_ended = 1;
        on_stream_end(s, now);
    }
}

static void link_ready(struct link *l, uint32_t ready) {
    if (!l->is_open) return;
    if (ready & ~EPOLLOUT) {
        if (l->in_room - l->in_len < 262144) l->in = grow(l->in, l->in_room = l->in_len + 262144);
        ssize_t n = recv(l->fd, l->in + l->in_len, l->in_room - l->in_len, 0);
        int64_t now = clock_ns();
        if (n == 0 || (n < 0 && errno != EAGAIN)) {
            link_break(l);
            return;
        }
        if (n > 0) {
            l->in_len += n;
            l->has_received = 1;
        }
        size_t at = 0;
        l->is_reading = 1; /* output is flushed once, below */
        while (l->in_len - at >= FRAME_HEAD) {
            const char *head = l->in + at;
            size_t length = get_number(head, 3);
            if (length > FRAME_LIMIT) {
                link_break(l);
                return;
            }
            if (l->in_len - at < FRAME_HEAD + length) break;
            at += FRAME_HEAD + length;
            on_frame(l, head[3], head[4], get_number(head + 5, 4) & 0x7fffffff, head + FRAME_HEAD, length, now);
        }
        l->is_reading = 0;
        l->in_len -= at;
        memmove(l->in, l->in + at, l->in_len);
    }
    link_flush(l);
}
