/* edge_frame.h - a board's side of the wire that docs/WIRE.md specifies.

   C99 (and C++), one file, no heap, nothing of libc but memcpy. In exactly one source file write

       #define EDGE_FRAME_IMPLEMENTATION
       #include "edge_frame.h"

   Options, defined before every include:
       EF_STREAMS        streams of this board, numbered from 0 (1)
       EF_RX_BYTES       longest body that can be received (64: TIME with a tag, the longest a host sends, has 52)
       EDGE_FRAME_AUTH   frames carry HMAC-SHA256 tags, see ef_use_key

   RAM: one ef_link, on a Cortex-M 144 bytes and with tags 328, and the FIFO that you give it: room for a HELLO and one
   of your frames at least, better for all you make while nobody empties it. Stack: below 400 bytes, with tags 600.

       static ef_link link;                      // zeros at the start
       static uint8_t fifo[1024];
       ef_begin(&link, "pump 7", "1.2", STREAMS, boot, fifo, sizeof fifo);
       for (;;) {
           while (a byte came) ef_receive(&link, byte, now_us(), 0);
           if (link.asked) ef_hello(&link, now_us());
           if (a sample is due) ef_sample(&link, 0, now_us(), EF_I16, 2, shape, values, EF_NO_LABEL);
           n = ef_take(&link, piece, room in the transmitter);  // and give these to it
       }

   One link belongs to one thread; only ef_take may run in an interrupt beside it, if a uint16_t is read and written in
   one go there (not on AVR: switch interrupts off around it). A sample that finds the FIFO full is dropped and counted,
   and the next one says so. All else returns 0 and is yours to try again. */
#ifndef EDGE_FRAME_H
#define EDGE_FRAME_H

#include <stddef.h>
#include <stdint.h>

#ifndef EF_STREAMS
#define EF_STREAMS 1
#endif
#ifndef EF_RX_BYTES
#define EF_RX_BYTES 64
#endif

#ifdef __cplusplus
extern "C" {
#endif

enum { EF_HELLO, EF_SAMPLE, EF_LABEL, EF_TIME, EF_STATS, EF_CTRL, EF_LOG, EF_ACK };
enum { EF_SAY_HELLO = 1, EF_END, EF_AGREE };                        /* codes of CTRL */
enum { EF_U8 = 1, EF_I8, EF_I16, EF_U16, EF_I32, EF_F32, EF_F16 };  /* dtypes */
enum { EF_NO_LABEL = -1, EF_NOTHING = -1 };

/* A frame that was received; payload lies in the link and is gone with the next byte. */
typedef struct {
    uint8_t type, cflags, dtype, ndim;
    uint16_t stream, boot, shape[4];
    uint32_t seq, size; /* size: bytes of payload */
    uint64_t t_us;
    int32_t label; /* EF_NO_LABEL if there is none */
    const uint8_t *payload;
} ef_frame;

#ifdef EDGE_FRAME_AUTH
typedef struct {
    uint32_t state[8], n_bytes;
    uint8_t block[64];
} ef_sha256;
#endif

/* Yours to read: asked, seed, safe and the counters. The rest is the link's own. */
typedef struct {
    const char *device, *firmware, *streams;
    uint8_t *fifo;
    uint16_t fifo_bytes, boot;
    volatile uint16_t head, tail;      /* head is moved by what sends, tail by ef_take */
    uint8_t asked;                     /* the host wants a HELLO */
    uint8_t overrun[EF_STREAMS];       /* samples were dropped since the last that was not */
    uint32_t next_seq[EF_STREAMS];
    uint32_t safe[EF_STREAMS];         /* the host keeps all samples below this seq */
    uint32_t generated, dropped, sent, received, crc; /* as STATS tells them */
    uint32_t schema, seed;             /* CRC-32 of streams; the same once the host has agreed, 0 before */
    uint32_t running_crc;              /* of the frame that is being written, and where it is */
    uint16_t at, code_at;
    uint8_t run;
    uint8_t rx_left, rx_zero, rx_bad, rx_started;
    uint16_t rx_size;
    uint8_t rx[EF_RX_BYTES];
#ifdef EDGE_FRAME_AUTH
    uint8_t has_key;
    uint32_t inner[8], outer[8];       /* SHA-256 behind the two pads of HMAC */
    uint64_t host_us;                  /* replay floor of this boot */
    ef_sha256 sha;
#endif
} ef_link;

/* Begin. The texts are ASCII without quotes and stay yours; streams is the JSON value of HELLO's "streams". boot changes
   at every start of the board, and rises if there is a key. link must be zeros. */
void ef_begin(ef_link *link, const char *device, const char *firmware, const char *streams, uint16_t boot,
              uint8_t *fifo, uint16_t fifo_bytes);

#ifdef EDGE_FRAME_AUTH
/* From now on each frame carries a tag, and only frames with one are taken. size: 16 to 64 bytes; else 0. */
int ef_use_key(ef_link *link, const uint8_t *key, size_t size);
#endif

/* All of these: 1 if it is in the FIFO, 0 if there was no room for it (or what you say cannot be sent). */
int ef_hello(ef_link *link, uint64_t t_us);
/* Counts a sample as generated whether it finds room or not. shape has ndim sizes; values are as the processor has them. */
int ef_sample(ef_link *link, uint16_t stream, uint64_t t_us, uint8_t dtype, uint8_t ndim, const uint16_t *shape,
              const void *values, int32_t label);
/* A label that comes later than its sample. source 0 is the board; confidence is from 0 to 1. */
int ef_label(ef_link *link, uint16_t stream, uint32_t seq, uint64_t t_us, int32_t label, uint8_t source,
             float confidence);
/* Nothing more will come in this stream. */
int ef_end(ef_link *link, uint16_t stream, uint64_t t_us);
int ef_stats(ef_link *link, uint64_t t_us);
/* Text for people, cut at 200 bytes. */
int ef_log(ef_link *link, uint64_t t_us, const char *text);
/* What only hosts say, for a board that speaks to boards and for tests. */
int ef_control(ef_link *link, uint16_t stream, uint32_t seq, uint64_t t_us, uint8_t code);
int ef_time(ef_link *link, uint64_t t_us, uint64_t host_us, uint64_t board_us);
int ef_ack(ef_link *link, uint16_t stream, uint32_t seq, uint64_t t_us);

/* At most max bytes for the line, taken out of the FIFO; how many. */
size_t ef_take(ef_link *link, uint8_t *to, size_t max);

/* One byte of the line, and what time it is. The type of the frame that it ended, EF_NOTHING if none. TIME is answered,
   AGREE and ACK are noted and asked is set at once; frame (or 0) shows what came. */
int ef_receive(ef_link *link, uint8_t byte, uint64_t t_us, ef_frame *frame);

#ifdef __cplusplus
}
#endif
#endif

#if defined(EDGE_FRAME_IMPLEMENTATION) && !defined(EDGE_FRAME_IMPLEMENTED)
#define EDGE_FRAME_IMPLEMENTED

#include <string.h>

#ifdef __cplusplus
extern "C" {
#endif

enum { EF__HEADER = 22, EF__CRC = 4, EF__TAG = 8, EF__AUTH = 1, EF__HAS_LABEL = 1, EF__OVERRUN = 4, EF__MAX_LOG = 200 };
/* CRC-32 of anything with its own CRC-32 behind it, whatever the seed. */
#define EF__RESIDUE 0x2144DF1CUL

/* CRC-32 (zlib's), four bits at a time: 64 bytes of table, where a whole one has 1,024. */
static uint32_t ef__crc_byte(uint32_t crc, uint8_t byte) {
    static const uint32_t table[16] = {
        0x00000000UL, 0x1DB71064UL, 0x3B6E20C8UL, 0x26D930ACUL, 0x76DC4190UL, 0x6B6B51F4UL, 0x4DB26158UL, 0x5005713CUL,
        0xEDB88320UL, 0xF00F9344UL, 0xD6D6A3E8UL, 0xCB61B38CUL, 0x9B64C2B0UL, 0x86D3D2D4UL, 0xA00AE278UL, 0xBDBDF21CUL};
    crc ^= byte;
    crc = table[crc & 15] ^ (crc >> 4);
    return table[crc & 15] ^ (crc >> 4);
}

static uint32_t ef__crc(uint32_t seed, const uint8_t *bytes, size_t size) {
    uint32_t crc = ~seed;
    size_t i;
    for (i = 0; i < size; i++) crc = ef__crc_byte(crc, bytes[i]);
    return ~crc;
}

/* Through a volatile pointer, or compilers would make it a call of strlen. */
static size_t ef__length(const char *text) {
    const volatile char *at = text;
    size_t size = 0;
    while (at[size]) size++;
    return size;
}

static uint8_t ef__item_bytes(uint8_t dtype) {
    static const uint8_t sizes[8] = {0, 1, 1, 2, 2, 4, 4, 2};
    return sizes[dtype & 7];
}

#ifdef EDGE_FRAME_AUTH
static uint32_t ef__turn(uint32_t word, int by) { return word >> by | word << (32 - by); }

static uint32_t ef__big(const uint8_t *bytes) {
    return (uint32_t)bytes[0] << 24 | (uint32_t)bytes[1] << 16 | (uint32_t)bytes[2] << 8 | bytes[3];
}

/* FIPS 180-4, with the 16 newest words of the schedule only. */
static void ef__sha_block(uint32_t *state, const uint8_t *block) {
    static const uint32_t k[64] = {
        0x428A2F98UL, 0x71374491UL, 0xB5C0FBCFUL, 0xE9B5DBA5UL, 0x3956C25BUL, 0x59F111F1UL, 0x923F82A4UL, 0xAB1C5ED5UL,
        0xD807AA98UL, 0x12835B01UL, 0x243185BEUL, 0x550C7DC3UL, 0x72BE5D74UL, 0x80DEB1FEUL, 0x9BDC06A7UL, 0xC19BF174UL,
        0xE49B69C1UL, 0xEFBE4786UL, 0x0FC19DC6UL, 0x240CA1CCUL, 0x2DE92C6FUL, 0x4A7484AAUL, 0x5CB0A9DCUL, 0x76F988DAUL,
        0x983E5152UL, 0xA831C66DUL, 0xB00327C8UL, 0xBF597FC7UL, 0xC6E00BF3UL, 0xD5A79147UL, 0x06CA6351UL, 0x14292967UL,
        0x27B70A85UL, 0x2E1B2138UL, 0x4D2C6DFCUL, 0x53380D13UL, 0x650A7354UL, 0x766A0ABBUL, 0x81C2C92EUL, 0x92722C85UL,
        0xA2BFE8A1UL, 0xA81A664BUL, 0xC24B8B70UL, 0xC76C51A3UL, 0xD192E819UL, 0xD6990624UL, 0xF40E3585UL, 0x106AA070UL,
        0x19A4C116UL, 0x1E376C08UL, 0x2748774CUL, 0x34B0BCB5UL, 0x391C0CB3UL, 0x4ED8AA4AUL, 0x5B9CCA4FUL, 0x682E6FF3UL,
        0x748F82EEUL, 0x78A5636FUL, 0x84C87814UL, 0x8CC70208UL, 0x90BEFFFAUL, 0xA4506CEBUL, 0xBEF9A3F7UL, 0xC67178F2UL};
    uint32_t w[16], v[8], t;
    uint32_t a, b;
    unsigned i;
    for (i = 0; i < 8; i++) v[i] = state[i];
    for (i = 0; i < 64; i++) {
        /* a to h are v[-i & 7] to v[7 - i & 7]: instead of moving all eight, their places turn. */
        const uint32_t va = v[-i & 7], ve = v[(4 - i) & 7];
        uint32_t *h = &v[(7 - i) & 7];
        if (i < 16) {
            w[i] = ef__big(block + 4 * i);
        } else {
            a = w[(i + 1) & 15];
            b = w[(i + 14) & 15];
            w[i & 15] += (ef__turn(a, 7) ^ ef__turn(a, 18) ^ a >> 3) + w[(i + 9) & 15] +
                         (ef__turn(b, 17) ^ ef__turn(b, 19) ^ b >> 10);
        }
        t = *h + (ef__turn(ve, 6) ^ ef__turn(ve, 11) ^ ef__turn(ve, 25)) +
            ((ve & v[(5 - i) & 7]) ^ (~ve & v[(6 - i) & 7])) + k[i] + w[i & 15];
        v[(3 - i) & 7] += t;
        a = v[(1 - i) & 7];
        b = v[(2 - i) & 7];
        *h = t + (ef__turn(va, 2) ^ ef__turn(va, 13) ^ ef__turn(va, 22)) + ((va & a) ^ (va & b) ^ (a & b));
    }
    for (i = 0; i < 8; i++) state[i] += v[i];
}

/* Begin behind one block that was taken before; state 0: at the very start. */
static void ef__sha_begin(ef_sha256 *sha, const uint32_t *state) {
    static const uint32_t start[8] = {0x6A09E667UL, 0xBB67AE85UL, 0x3C6EF372UL, 0xA54FF53AUL,
                                      0x510E527FUL, 0x9B05688CUL, 0x1F83D9ABUL, 0x5BE0CD19UL};
    memcpy(sha->state, state ? state : start, sizeof start);
    sha->n_bytes = state ? 64 : 0;
}

static void ef__sha_byte(ef_sha256 *sha, uint8_t byte) {
    sha->block[sha->n_bytes++ & 63] = byte;
    if (!(sha->n_bytes & 63)) ef__sha_block(sha->state, sha->block);
}

static void ef__sha_end(ef_sha256 *sha, uint8_t *digest) {
    uint64_t n_bits = (uint64_t)sha->n_bytes * 8;
    int i;
    ef__sha_byte(sha, 0x80);
    while ((sha->n_bytes & 63) != 56) ef__sha_byte(sha, 0);
    for (i = 56; i >= 0; i -= 8) ef__sha_byte(sha, (uint8_t)(n_bits >> i));
    for (i = 0; i < 32; i++) digest[i] = (uint8_t)(sha->state[i / 4] >> (24 - i % 4 * 8));
}

static void ef__tag_begin(ef_link *link, uint8_t sender) {
    ef__sha_begin(&link->sha, link->inner);
    ef__sha_byte(&link->sha, sender);
}

/* The first 8 bytes of the digest are the tag. */
static void ef__tag_end(ef_link *link, uint8_t *digest) {
    int i;
    ef__sha_end(&link->sha, digest);
    ef__sha_begin(&link->sha, link->outer);
    for (i = 0; i < 32; i++) ef__sha_byte(&link->sha, digest[i]);
    ef__sha_end(&link->sha, digest);
}

int ef_use_key(ef_link *link, const uint8_t *key, size_t size) {
    size_t i;
    uint8_t pass;
    if (size < 16 || size > 64) return 0;
    for (pass = 0; pass < 2; pass++) {
        ef__sha_begin(&link->sha, 0);
        for (i = 0; i < 64; i++) ef__sha_byte(&link->sha, (uint8_t)((i < size ? key[i] : 0) ^ (pass ? 0x5C : 0x36)));
        memcpy(pass ? link->outer : link->inner, link->sha.state, sizeof link->inner);
    }
    link->has_key = 1;
    return 1;
}
#endif

void ef_begin(ef_link *link, const char *device, const char *firmware, const char *streams, uint16_t boot,
              uint8_t *fifo, uint16_t fifo_bytes) {
    link->device = device;
    link->firmware = firmware;
    link->streams = streams;
    link->schema = ef__crc(0, (const uint8_t *)streams, ef__length(streams));
    link->boot = boot;
    link->fifo = fifo;
    link->fifo_bytes = fifo_bytes;
}

/* ------------------------------------------------------------------------------------------------------- sending */

static void ef__raw(ef_link *link, uint8_t byte) {
    link->fifo[link->at] = byte;
    if (++link->at == link->fifo_bytes) link->at = 0;
}

static void ef__open_run(ef_link *link) {
    link->code_at = link->at;
    link->run = 1;
    ef__raw(link, 1);
}

/* One byte through COBS: a run of up to 254 bytes that are not zero, its length and one in front. */
static void ef__stuff(ef_link *link, uint8_t byte) {
    if (link->run == 255) ef__open_run(link);
    if (byte) {
        ef__raw(link, byte);
        link->fifo[link->code_at] = ++link->run;
    } else {
        ef__open_run(link);
    }
}

static void ef__put(ef_link *link, uint8_t byte) {
    link->running_crc = ef__crc_byte(link->running_crc, byte);
#ifdef EDGE_FRAME_AUTH
    if (link->has_key) ef__sha_byte(&link->sha, byte);
#endif
    ef__stuff(link, byte);
}

static void ef__put_number(ef_link *link, uint64_t number, int n_bytes) {
    for (; n_bytes > 0; n_bytes--, number >>= 8) ef__put(link, (uint8_t)number);
}

static void ef__put_text(ef_link *link, const char *text) {
    while (*text) ef__put(link, (uint8_t)*text++);
}

typedef struct {
    uint8_t type, cflags, dtype, ndim;
    uint16_t stream;
    uint32_t seq;
    uint64_t t_us;
    const uint16_t *shape;
    int32_t label;
} ef__head;

static int ef__fits(const ef_link *link, uint32_t body) {
    const uint16_t tail = link->tail; /* once: an interrupt may move it */
    const uint32_t used = (uint32_t)(link->head + (link->head < tail ? link->fifo_bytes : 0) - tail);
    return body < 65535UL && used + body + body / 254 + 4 <= link->fifo_bytes; /* codes, two zeros, one byte stays free */
}

/* Header, shape and label, if a frame with so many bytes of payload finds room. */
static int ef__open(ef_link *link, const ef__head *head, uint32_t size) {
    uint32_t body = EF__HEADER + 2u * head->ndim + (head->cflags & EF__HAS_LABEL ? 4 : 0) + EF__CRC + size;
    uint8_t tagged = 0, i;
#ifdef EDGE_FRAME_AUTH
    tagged = link->has_key;
#endif
    if (size == 0 || size > 65535UL || !ef__fits(link, body + (tagged ? EF__TAG : 0))) return 0;
    link->at = link->head;
    link->running_crc = ~(head->type == EF_SAMPLE || head->type == EF_LABEL ? link->seed : 0);
#ifdef EDGE_FRAME_AUTH
    if (tagged) ef__tag_begin(link, 'B');
#endif
    if (head->type == EF_HELLO) ef__raw(link, 0); /* ends whatever was on the line before */
    ef__open_run(link);
    ef__put(link, 1);
    ef__put(link, head->type);
    ef__put(link, tagged ? EF__AUTH : 0);
    ef__put(link, head->cflags);
    ef__put_number(link, head->stream, 2);
    ef__put_number(link, link->boot, 2);
    ef__put_number(link, head->seq, 4);
    ef__put_number(link, head->t_us, 8);
    ef__put(link, head->dtype);
    ef__put(link, head->ndim);
    for (i = 0; i < head->ndim; i++) ef__put_number(link, head->shape[i], 2);
    if (head->cflags & EF__HAS_LABEL) ef__put_number(link, (uint32_t)head->label, 4);
    return 1;
}

/* Tag, CRC and the zero behind it; only now does ef_take see the frame. */
static int ef__close(ef_link *link) {
    uint32_t crc;
    int i;
#ifdef EDGE_FRAME_AUTH
    if (link->has_key) {
        uint8_t digest[32];
        ef__tag_end(link, digest);
        for (i = 0; i < EF__TAG; i++) {
            link->running_crc = ef__crc_byte(link->running_crc, digest[i]);
            ef__stuff(link, digest[i]);
        }
    }
#endif
    crc = ~link->running_crc;
    for (i = 0; i < EF__CRC; i++) ef__stuff(link, (uint8_t)(crc >> 8 * i));
    ef__raw(link, 0);
    link->head = link->at;
    link->sent++;
    return 1;
}

/* Opens a frame of any type but SAMPLE: one dimension of bytes. */
static int ef__open_bytes(ef_link *link, uint8_t type, uint16_t stream, uint32_t seq, uint64_t t_us, uint32_t size) {
    uint16_t shape = (uint16_t)size;
    ef__head head = {type, 0, EF_U8, 1, stream, seq, t_us, 0, 0};
    head.shape = &shape;
    return ef__open(link, &head, size);
}

int ef_hello(ef_link *link, uint64_t t_us) {
    static const char boot_key[] = "{\"boot\":", device_key[] = ",\"device\":\"", firmware_key[] = "\",\"firmware\":\"",
                      streams_key[] = "\",\"protocol\":1,\"streams\":";
    char digits[6];
    uint16_t left = link->boot;
    int first = 5;
    digits[5] = 0;
    do digits[--first] = (char)('0' + left % 10);
    while (left /= 10);
    if (!ef__open_bytes(link, EF_HELLO, 0, 0, t_us,
                        (uint32_t)(sizeof boot_key + sizeof device_key + sizeof firmware_key + sizeof streams_key - 4 +
                                   (size_t)(5 - first) + ef__length(link->device) + ef__length(link->firmware) +
                                   ef__length(link->streams) + 1)))
        return 0;
    ef__put_text(link, boot_key);
    ef__put_text(link, digits + first);
    ef__put_text(link, device_key);
    ef__put_text(link, link->device);
    ef__put_text(link, firmware_key);
    ef__put_text(link, link->firmware);
    ef__put_text(link, streams_key);
    ef__put_text(link, link->streams);
    ef__put(link, '}');
    link->asked = 0;
    return ef__close(link);
}

int ef_sample(ef_link *link, uint16_t stream, uint64_t t_us, uint8_t dtype, uint8_t ndim, const uint16_t *shape,
              const void *values, int32_t label) {
    const uint8_t *bytes = (const uint8_t *)values;
    uint32_t size = ef__item_bytes(dtype), i, swap = 0;
    ef__head head = {EF_SAMPLE, 0, dtype, ndim, stream, 0, t_us, shape, label};
    if (stream >= EF_STREAMS || dtype > EF_F16 || ndim > 4) return 0;
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
    swap = size - 1;
#endif
    for (i = 0; i < ndim; i++) size = shape[i] && size <= 65535UL / shape[i] ? size * shape[i] : 0;
    head.seq = link->next_seq[stream]++;
    link->generated++;
    head.cflags = (uint8_t)((label >= 0 ? EF__HAS_LABEL : 0) | (link->overrun[stream] ? EF__OVERRUN : 0));
    if (!ef__open(link, &head, size)) {
        link->overrun[stream] = 1;
        link->dropped++;
        return 0;
    }
    for (i = 0; i < size; i++) ef__put(link, bytes[i ^ swap]);
    link->overrun[stream] = 0;
    return ef__close(link);
}

int ef_label(ef_link *link, uint16_t stream, uint32_t seq, uint64_t t_us, int32_t label, uint8_t source,
             float confidence) {
    static const uint16_t shape = 5;
    uint32_t bits;
    ef__head head = {EF_LABEL, EF__HAS_LABEL, EF_U8, 1, stream, seq, t_us, 0, label};
    head.shape = &shape;
    if (label < 0 || !ef__open(link, &head, shape)) return 0;
    memcpy(&bits, &confidence, sizeof bits);
    ef__put(link, source);
    ef__put_number(link, bits, 4);
    return ef__close(link);
}

int ef_control(ef_link *link, uint16_t stream, uint32_t seq, uint64_t t_us, uint8_t code) {
    if (!ef__open_bytes(link, EF_CTRL, stream, seq, t_us, 1)) return 0;
    ef__put(link, code);
    return ef__close(link);
}

int ef_end(ef_link *link, uint16_t stream, uint64_t t_us) {
    return stream < EF_STREAMS && ef_control(link, stream, link->next_seq[stream], t_us, EF_END);
}

int ef_time(ef_link *link, uint64_t t_us, uint64_t host_us, uint64_t board_us) {
    if (!ef__open_bytes(link, EF_TIME, 0, 0, t_us, 16)) return 0;
    ef__put_number(link, host_us, 8);
    ef__put_number(link, board_us, 8);
    return ef__close(link);
}

int ef_stats(ef_link *link, uint64_t t_us) {
    if (!ef__open_bytes(link, EF_STATS, 0, 0, t_us, 20)) return 0;
    ef__put_number(link, link->generated, 4);
    ef__put_number(link, link->dropped, 4);
    ef__put_number(link, link->sent, 4);
    ef__put_number(link, link->received, 4);
    ef__put_number(link, link->crc, 4);
    return ef__close(link);
}

int ef_log(ef_link *link, uint64_t t_us, const char *text) {
    size_t size = ef__length(text), i;
    if (size > EF__MAX_LOG) size = EF__MAX_LOG;
    if (!ef__open_bytes(link, EF_LOG, 0, 0, t_us, (uint32_t)size)) return 0;
    for (i = 0; i < size; i++) ef__put(link, (uint8_t)text[i]);
    return ef__close(link);
}

int ef_ack(ef_link *link, uint16_t stream, uint32_t seq, uint64_t t_us) {
    if (!ef__open_bytes(link, EF_ACK, stream, seq, t_us, 1)) return 0;
    ef__put(link, 0);
    return ef__close(link);
}

size_t ef_take(ef_link *link, uint8_t *to, size_t max) {
    uint16_t tail = link->tail, head = link->head;
    size_t n = 0;
    while (n < max && tail != head) {
        to[n++] = link->fifo[tail];
        if (++tail == link->fifo_bytes) tail = 0;
    }
    link->tail = tail;
    return n;
}

/* ----------------------------------------------------------------------------------------------------- receiving */

static uint64_t ef__number(const uint8_t *bytes, int n_bytes) {
    uint64_t number = 0;
    while (n_bytes > 0) number = number << 8 | bytes[--n_bytes];
    return number;
}

#ifdef EDGE_FRAME_AUTH
/* Whether the host made this frame, in this boot, later than all that came before: then it is the new floor. */
static int ef__authentic(ef_link *link, const ef_frame *frame, uint32_t end) {
    uint8_t digest[32], wrong = 0;
    uint32_t i;
    ef__tag_begin(link, 'H');
    for (i = 0; i < end; i++) ef__sha_byte(&link->sha, link->rx[i]);
    ef__tag_end(link, digest);
    for (i = 0; i < EF__TAG; i++) wrong |= (uint8_t)(digest[i] ^ link->rx[end + i]);
    if (wrong || frame->boot != link->boot || frame->t_us <= link->host_us) return 0;
    link->host_us = frame->t_us;
    return 1;
}
#endif

/* What a type asks of its payload. */
static int ef__right_size(const ef_frame *frame) {
    switch (frame->type) {
        case EF_LABEL: return frame->size == 5 && frame->label >= 0;
        case EF_TIME: return frame->size == 16;
        case EF_CTRL:
        case EF_ACK: return frame->size == 1;
        case EF_LOG: return frame->size <= EF__MAX_LOG;
        default: return 1;
    }
}

/* In the order of docs/WIRE.md: CRC, layout, tag. */
static int ef__understand(ef_link *link, ef_frame *frame) {
    const uint8_t *rx = link->rx;
    uint32_t at = EF__HEADER, end = link->rx_size, size;
    uint8_t i;
    if (end < EF__HEADER + EF__CRC + 1) return 0;
    if (ef__crc(0, rx, end) != EF__RESIDUE && ef__crc(link->seed, rx, end) != EF__RESIDUE) return 0;
    frame->type = rx[1];
    frame->cflags = rx[3];
    frame->stream = (uint16_t)ef__number(rx + 4, 2);
    frame->boot = (uint16_t)ef__number(rx + 6, 2);
    frame->seq = (uint32_t)ef__number(rx + 8, 4);
    frame->t_us = ef__number(rx + 12, 8);
    frame->dtype = rx[20];
    frame->ndim = rx[21];
    frame->label = EF_NO_LABEL;
    if (rx[0] != 1 || frame->type > EF_ACK || rx[2] & ~EF__AUTH || frame->dtype > EF_F16 || frame->ndim > 4) return 0;
    if (frame->type != EF_SAMPLE && (frame->dtype != EF_U8 || frame->ndim != 1)) return 0;
    end -= (uint32_t)(EF__CRC + (rx[2] ? EF__TAG : 0));
    if (at + 2u * frame->ndim + 5 > end + 4) return 0;
    size = ef__item_bytes(frame->dtype);
    for (i = 0; i < frame->ndim; i++, at += 2) {
        frame->shape[i] = (uint16_t)ef__number(rx + at, 2);
        size = frame->shape[i] && size <= EF_RX_BYTES / frame->shape[i] ? size * frame->shape[i] : 0;
    }
    if (frame->cflags & EF__HAS_LABEL) {
        if (at + 4 > end) return 0;
        frame->label = (int32_t)(uint32_t)ef__number(rx + at, 4);
        at += 4;
    }
    frame->payload = rx + at;
    frame->size = size;
    if (size == 0 || at + size != end || !ef__right_size(frame)) return 0;
#ifdef EDGE_FRAME_AUTH
    if (rx[2]) return link->has_key && ef__authentic(link, frame, end);
    if (link->has_key) return frame->type == EF_CTRL && rx[at] == EF_SAY_HELLO;
    return 1;
#else
    return !rx[2];
#endif
}

/* What every board does with what the host says. */
static void ef__serve(ef_link *link, const ef_frame *frame, uint64_t t_us) {
    if (frame->type == EF_CTRL && frame->payload[0] == EF_SAY_HELLO) link->asked = 1;
    if (frame->type == EF_CTRL && frame->payload[0] == EF_AGREE) link->seed = frame->seq == link->schema ? frame->seq : 0;
    if (frame->type == EF_TIME && ef__number(frame->payload + 8, 8) == 0)
        ef_time(link, t_us, ef__number(frame->payload, 8), t_us);
    if (frame->type == EF_ACK && frame->stream < EF_STREAMS && frame->boot == link->boot)
        link->safe[frame->stream] = frame->seq + 1;
}

static void ef__keep(ef_link *link, uint8_t byte) {
    if (link->rx_size < EF_RX_BYTES)
        link->rx[link->rx_size++] = byte;
    else
        link->rx_bad = 1;
}

/* One byte through COBS, backwards. */
static void ef__unstuff(ef_link *link, uint8_t byte) {
    link->rx_started = 1;
    if (link->rx_left) {
        link->rx_left--;
        ef__keep(link, byte);
        return;
    }
    if (link->rx_zero) ef__keep(link, 0);
    link->rx_zero = byte != 255;
    link->rx_left = (uint8_t)(byte - 1);
}

int ef_receive(ef_link *link, uint8_t byte, uint64_t t_us, ef_frame *frame) {
    ef_frame own;
    int right;
    if (byte) {
        ef__unstuff(link, byte);
        return EF_NOTHING;
    }
    if (!link->rx_started) return EF_NOTHING;
    if (!frame) frame = &own;
    right = !link->rx_bad && !link->rx_left && ef__understand(link, frame);
    link->rx_started = link->rx_bad = link->rx_left = link->rx_zero = 0;
    link->rx_size = 0;
    if (!right) {
        link->crc++;
        return EF_NOTHING;
    }
    link->received++;
    ef__serve(link, frame, t_us);
    return frame->type;
}

#ifdef __cplusplus
}
#endif
#endif
