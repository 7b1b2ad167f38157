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
#if EF_RX_BYTES < 52 || EF_RX_BYTES > 65535
#error "EF_RX_BYTES: 52 to 65535"
#endif

#ifdef __cplusplus
extern "C" {
#endif

enum { EF_HELLO, EF_SAMPLE, EF_LABEL, EF_TIME, EF_STATS, EF_CTRL, EF_LOG, EF_ACK };
enum { EF_SAY_HELLO = 1, EF_END, EF_AGREE, EF_NEXT, EF_BEFORE };    /* codes of CTRL */
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
    uint32_t state[8], words[16], n_bytes;
} ef_sha256;
#endif

/* Yours to read: asked, seed, safe and the counters. The rest is the link's own. */
typedef struct {
    const char *texts[3];              /* device, firmware, streams */
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
    uint8_t rx_left, rx_zero, rx_bad;
    uint16_t rx_size;
#ifdef EDGE_FRAME_AUTH
    uint8_t has_key;
#endif
    uint8_t rx[EF_RX_BYTES];
#ifdef EDGE_FRAME_AUTH
    uint32_t pads[2][8];               /* SHA-256 behind the two pads of HMAC */
    uint64_t host_us;                  /* replay floor of this boot */
    uint64_t said_us;                  /* t_us of the last frame that was no SAMPLE */
    ef_sha256 sha;
#endif
} ef_link;

/* Begin. The texts are ASCII without quotes and stay yours; streams is the JSON value of HELLO's "streams". boot changes
   at every start of the board, and rises if there is a key. link must be zeros. */
void ef_begin(ef_link *link, const char *device, const char *firmware, const char *streams, uint16_t boot,
              uint8_t *fifo, uint16_t fifo_bytes);

#ifdef EDGE_FRAME_AUTH
/* From now on each frame carries a tag, and only frames with one are taken. size: 16 to 64 bytes; else 0. What is said
   twice in one t_us is said one later then: only that of samples is sent as you give it. */
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
/* Where the stream is, so that the host sees at once what is missing. Say it before the first sample, every hundred
   samples or so and before the end, each time both, in this order: they are frames, too, and may be lost. total, only
   of a board whose memory outlives a power cut: samples of all boots before this one, modulo 2^32, never too few. */
int ef_next(ef_link *link, uint16_t stream, uint64_t t_us);
int ef_before(ef_link *link, uint16_t stream, uint32_t total, uint64_t t_us);
/* Nothing more will come in this stream. May be lost, too: say it until the host hangs up. */
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
/* A frame's bytes beside its payload: header, 4 sizes, label, tag, CRC, 2 zeros, COBS's first code; one stays free. */
enum { EF__BESIDE = 50 };
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

static uint64_t ef__number(const uint8_t *bytes, int n_bytes) {
    uint64_t number = 0;
    while (n_bytes > 0) number = number << 8 | bytes[--n_bytes];
    return number;
}

/* What the CRC of a type begins with: of what a stream says, the schema that both sides agreed on. */
static uint32_t ef__seed(const ef_link *link, uint8_t type) {
    return type == EF_SAMPLE || type == EF_LABEL ? link->seed : 0;
}

static uint8_t ef__item_bytes(uint8_t dtype) {
    static const uint8_t sizes[8] = {0, 1, 1, 2, 2, 4, 4, 2};
    return dtype < 8 ? sizes[dtype] : 0;
}

#ifdef EDGE_FRAME_AUTH
static uint32_t ef__turn(uint32_t word, int by) { return word >> by | word << (32 - by); }

/* FIPS 180-4. The schedule's 16 newest words are kept, in the place of the block that they come from. */
static void ef__sha_block(uint32_t *state, uint32_t *w) {
    static const uint32_t k[64] = {
        0x428A2F98UL, 0x71374491UL, 0xB5C0FBCFUL, 0xE9B5DBA5UL, 0x3956C25BUL, 0x59F111F1UL, 0x923F82A4UL, 0xAB1C5ED5UL,
        0xD807AA98UL, 0x12835B01UL, 0x243185BEUL, 0x550C7DC3UL, 0x72BE5D74UL, 0x80DEB1FEUL, 0x9BDC06A7UL, 0xC19BF174UL,
        0xE49B69C1UL, 0xEFBE4786UL, 0x0FC19DC6UL, 0x240CA1CCUL, 0x2DE92C6FUL, 0x4A7484AAUL, 0x5CB0A9DCUL, 0x76F988DAUL,
        0x983E5152UL, 0xA831C66DUL, 0xB00327C8UL, 0xBF597FC7UL, 0xC6E00BF3UL, 0xD5A79147UL, 0x06CA6351UL, 0x14292967UL,
        0x27B70A85UL, 0x2E1B2138UL, 0x4D2C6DFCUL, 0x53380D13UL, 0x650A7354UL, 0x766A0ABBUL, 0x81C2C92EUL, 0x92722C85UL,
        0xA2BFE8A1UL, 0xA81A664BUL, 0xC24B8B70UL, 0xC76C51A3UL, 0xD192E819UL, 0xD6990624UL, 0xF40E3585UL, 0x106AA070UL,
        0x19A4C116UL, 0x1E376C08UL, 0x2748774CUL, 0x34B0BCB5UL, 0x391C0CB3UL, 0x4ED8AA4AUL, 0x5B9CCA4FUL, 0x682E6FF3UL,
        0x748F82EEUL, 0x78A5636FUL, 0x84C87814UL, 0x8CC70208UL, 0x90BEFFFAUL, 0xA4506CEBUL, 0xBEF9A3F7UL, 0xC67178F2UL};
    uint32_t v[8], t, a, e; /* v: a to h of the standard. Three turns of one word are taken from the inside out. */
    unsigned i, j;
    memcpy(v, state, sizeof v);
    for (i = 0; i < 64; i++) {
        if (i >= 16) {
            a = w[(i + 1) & 15];
            e = w[(i + 14) & 15];
            w[i & 15] += (ef__turn(a, 7) ^ ef__turn(a, 18) ^ a >> 3) + w[(i + 9) & 15] +
                         (ef__turn(e, 17) ^ ef__turn(e, 19) ^ e >> 10);
        }
        a = v[0];
        e = v[4];
        t = v[7] + ef__turn(ef__turn(ef__turn(e, 14) ^ e, 5) ^ e, 6) + (v[6] ^ (e & (v[5] ^ v[6]))) + k[i] + w[i & 15];
        v[3] += t;
        t += ef__turn(ef__turn(ef__turn(a, 9) ^ a, 11) ^ a, 2) + ((a & v[1]) | (v[2] & (a | v[1])));
        for (j = 0; j < 8; j++) { /* all move up by one, t is the new a */
            a = v[j];
            v[j] = t;
            t = a;
        }
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
    uint32_t *word = &sha->words[sha->n_bytes++ / 4 & 15];
    *word = *word << 8 | byte;
    if (!(sha->n_bytes & 63)) ef__sha_block(sha->state, sha->words);
}

/* A frame is far shorter than 2^29 bytes: the last word holds its length in bits. */
static void ef__sha_end(ef_sha256 *sha, uint8_t *digest) {
    const uint32_t n_bits = sha->n_bytes * 8;
    int i;
    ef__sha_byte(sha, 0x80);
    while ((sha->n_bytes & 63) != 56) ef__sha_byte(sha, 0);
    sha->words[14] = 0;
    sha->words[15] = n_bits;
    ef__sha_block(sha->state, sha->words);
    for (i = 0; i < 32; i++) digest[i] = (uint8_t)(sha->state[i / 4] >> (24 - i % 4 * 8));
}

static void ef__tag_begin(ef_link *link, uint8_t sender) {
    ef__sha_begin(&link->sha, link->pads[0]);
    ef__sha_byte(&link->sha, sender);
}

/* The first 8 bytes of the digest, as a number. */
static uint64_t ef__tag_end(ef_link *link) {
    uint8_t digest[32];
    int i;
    ef__sha_end(&link->sha, digest);
    ef__sha_begin(&link->sha, link->pads[1]);
    for (i = 0; i < 32; i++) ef__sha_byte(&link->sha, digest[i]);
    ef__sha_end(&link->sha, digest);
    link->sha.n_bytes = 0; /* tag and CRC, put behind it, are hashed for nobody */
    return ef__number(digest, EF__TAG);
}

int ef_use_key(ef_link *link, const uint8_t *key, size_t size) {
    size_t i;
    uint8_t pass;
    if (size < 16 || size > 64) return 0;
    for (pass = 0; pass < 2; pass++) {
        ef__sha_begin(&link->sha, 0);
        for (i = 0; i < 64; i++) ef__sha_byte(&link->sha, (uint8_t)((i < size ? key[i] : 0) ^ (pass ? 0x5C : 0x36)));
        memcpy(link->pads[pass], link->sha.state, sizeof link->pads[pass]);
    }
    link->has_key = 1;
    return 1;
}
#endif

void ef_begin(ef_link *link, const char *device, const char *firmware, const char *streams, uint16_t boot,
              uint8_t *fifo, uint16_t fifo_bytes) {
    link->texts[0] = device;
    link->texts[1] = firmware;
    link->texts[2] = streams;
    link->schema = ~(uint32_t)0;
    while (*streams) link->schema = ef__crc_byte(link->schema, (uint8_t)*streams++);
    link->schema = ~link->schema;
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

typedef struct {
    uint8_t type, cflags, dtype, ndim;
    uint16_t stream;
    uint32_t seq;
    uint64_t t_us;
    const uint16_t *shape;
    int32_t label;
} ef__head;

/* Header, shape and label, if a frame with so many bytes of payload finds room. */
static int ef__open(ef_link *link, const ef__head *head, uint32_t size) {
    const uint16_t from = link->head, tail = link->tail; /* once: an interrupt may move it */
    const uint32_t used = (uint32_t)(from + (from < tail ? link->fifo_bytes : 0) - tail);
    const uint32_t codes = size / 128; /* COBS has one for every 254 bytes, or more often */
    uint64_t t_us = head->t_us;
    uint8_t tagged = 0, i;
#ifdef EDGE_FRAME_AUTH
    tagged = link->has_key;
#endif
    if (size == 0 || used + EF__BESIDE + size + codes > link->fifo_bytes) return 0;
    link->running_crc = ~ef__seed(link, head->type);
#ifdef EDGE_FRAME_AUTH
    if (tagged) {
        ef__tag_begin(link, 'B');
        if (head->type != EF_SAMPLE) {
            if (t_us <= link->said_us) t_us = link->said_us + 1;
            link->said_us = t_us;
        }
    }
#endif
    if (head->type == EF_HELLO) ef__raw(link, 0); /* ends whatever was on the line before */
    ef__open_run(link);
    ef__put_number(link, 1u | (uint32_t)head->type << 8 | (uint32_t)tagged << 16 | (uint32_t)head->cflags << 24, 4);
    ef__put_number(link, head->stream | (uint32_t)link->boot << 16 | (uint64_t)head->seq << 32, 8);
    ef__put_number(link, t_us, 8);
    ef__put_number(link, head->dtype | (uint32_t)head->ndim << 8, 2);
    for (i = 0; i < head->ndim; i++) ef__put_number(link, head->shape ? head->shape[i] : size, 2);
    if (head->label >= 0) ef__put_number(link, (uint32_t)head->label, 4);
    return 1;
}

/* Tag, CRC and the zero behind it; only now does ef_take see the frame. */
static int ef__close(ef_link *link) {
#ifdef EDGE_FRAME_AUTH
    if (link->has_key) ef__put_number(link, ef__tag_end(link), EF__TAG);
#endif
    ef__put_number(link, ~link->running_crc, EF__CRC);
    ef__raw(link, 0);
    link->head = link->at;
    link->sent++;
    return 1;
}

/* HELLO's JSON; how many bytes it has. In its form 1 to 3 stand for the link's texts, 4 for the boot. */
static uint32_t ef__introduce(ef_link *link, int put) {
    static const char form[] = "{\"boot\":\4,\"device\":\"\1\",\"firmware\":\"\2\",\"protocol\":1,\"streams\":\3}";
    const char *at, *text;
    char one[2], digits[6];
    uint32_t size = 0;
    uint16_t left = link->boot;
    int i = 5;
    one[1] = digits[5] = 0;
    do digits[--i] = (char)('0' + left % 10);
    while (left /= 10);
    for (at = form; *at; at++) {
        one[0] = *at;
        text = *at > 4 ? one : *at == 4 ? digits + i : link->texts[*at - 1];
        for (; *text; text++, size++)
            if (put) ef__put(link, (uint8_t)*text);
    }
    return size;
}

/* A whole frame. Its values are as the processor has them; those of HELLO are made here. */
static int ef__send(ef_link *link, const ef__head *head, const void *values, uint32_t size) {
    const uint8_t *bytes = (const uint8_t *)values;
    uint32_t i, swap = 0;
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
    swap = (head->type == EF_TIME ? 8u : head->type == EF_STATS ? 4u : ef__item_bytes(head->dtype)) - 1;
#endif
    if (!ef__open(link, head, size)) return 0;
    if (head->type == EF_HELLO)
        ef__introduce(link, 1);
    else
        for (i = 0; i < size; i++) ef__put(link, bytes[i ^ swap]);
    return ef__close(link);
}

/* A frame of any type but SAMPLE: one dimension of bytes. */
static int ef__send_bytes(ef_link *link, uint8_t type, uint16_t stream, uint32_t seq, uint64_t t_us, const void *values,
                          uint32_t size) {
    ef__head head = {type, 0, EF_U8, 1, stream, seq, t_us, 0, EF_NO_LABEL};
    return ef__send(link, &head, values, size);
}

int ef_hello(ef_link *link, uint64_t t_us) {
    if (!ef__send_bytes(link, EF_HELLO, 0, 0, t_us, 0, ef__introduce(link, 0))) return 0;
    link->asked = 0;
    return 1;
}

int ef_sample(ef_link *link, uint16_t stream, uint64_t t_us, uint8_t dtype, uint8_t ndim, const uint16_t *shape,
              const void *values, int32_t label) {
    uint32_t size = ef__item_bytes(dtype), i;
    ef__head head = {EF_SAMPLE, 0, dtype, ndim, stream, 0, t_us, shape, label};
    if (stream >= EF_STREAMS || ndim > 4) return 0;
    for (i = 0; i < ndim; i++) {
        size *= shape[i];
        if (size > 65535UL) size = 0;
    }
    head.seq = link->next_seq[stream]++;
    link->generated++;
    head.cflags = (uint8_t)((label >= 0 ? EF__HAS_LABEL : 0) | (link->overrun[stream] ? EF__OVERRUN : 0));
    link->overrun[stream] = !ef__send(link, &head, values, size);
    link->dropped += link->overrun[stream];
    return !link->overrun[stream];
}

int ef_label(ef_link *link, uint16_t stream, uint32_t seq, uint64_t t_us, int32_t label, uint8_t source,
             float confidence) {
    ef__head head = {EF_LABEL, EF__HAS_LABEL, EF_U8, 1, stream, seq, t_us, 0, label};
    uint32_t bits;
    uint8_t payload[5];
    int i;
    if (label < 0) return 0;
    memcpy(&bits, &confidence, sizeof bits);
    payload[0] = source;
    for (i = 1; i < 5; i++, bits >>= 8) payload[i] = (uint8_t)bits;
    return ef__send(link, &head, payload, sizeof payload);
}

static int ef__send_byte(ef_link *link, uint8_t type, uint16_t stream, uint32_t seq, uint64_t t_us, uint8_t byte) {
    return ef__send_bytes(link, type, stream, seq, t_us, &byte, 1);
}

int ef_control(ef_link *link, uint16_t stream, uint32_t seq, uint64_t t_us, uint8_t code) {
    return ef__send_byte(link, EF_CTRL, stream, seq, t_us, code);
}

/* Tells the number of the stream's next sample. */
static int ef__place(ef_link *link, uint16_t stream, uint64_t t_us, uint8_t code) {
    return stream < EF_STREAMS && ef_control(link, stream, link->next_seq[stream], t_us, code);
}

int ef_next(ef_link *link, uint16_t stream, uint64_t t_us) { return ef__place(link, stream, t_us, EF_NEXT); }

int ef_end(ef_link *link, uint16_t stream, uint64_t t_us) { return ef__place(link, stream, t_us, EF_END); }

int ef_before(ef_link *link, uint16_t stream, uint32_t total, uint64_t t_us) {
    return ef_control(link, stream, total, t_us, EF_BEFORE);
}

int ef_time(ef_link *link, uint64_t t_us, uint64_t host_us, uint64_t board_us) {
    uint64_t both[2];
    both[0] = host_us;
    both[1] = board_us;
    return ef__send_bytes(link, EF_TIME, 0, 0, t_us, both, 16);
}

int ef_stats(ef_link *link, uint64_t t_us) {
    return ef__send_bytes(link, EF_STATS, 0, 0, t_us, (const uint8_t *)link + offsetof(ef_link, generated), 20);
}

int ef_log(ef_link *link, uint64_t t_us, const char *text) {
    uint32_t size = 0;
    while (size < EF__MAX_LOG && text[size]) size++;
    return ef__send_bytes(link, EF_LOG, 0, 0, t_us, text, size);
}

int ef_ack(ef_link *link, uint16_t stream, uint32_t seq, uint64_t t_us) {
    return ef__send_byte(link, EF_ACK, stream, seq, t_us, 0);
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

#ifdef EDGE_FRAME_AUTH
/* Whether the host made this frame, in this boot, later than all that came before: then it is the new floor. */
static int ef__authentic(ef_link *link, const ef_frame *frame, uint32_t end) {
    volatile uint64_t wrong; /* volatile: it is compared whole, in a time that does not tell where it differs */
    uint32_t i;
    ef__tag_begin(link, 'H');
    for (i = 0; i < end; i++) ef__sha_byte(&link->sha, link->rx[i]);
    wrong = ef__tag_end(link) ^ ef__number(link->rx + end, EF__TAG);
    if (wrong || frame->boot != link->boot || frame->t_us <= link->host_us) return 0;
    link->host_us = frame->t_us;
    return 1;
}
#endif

/* What a type asks of its payload. */
static int ef__right_size(const ef_frame *frame) {
    static const uint8_t sizes[8] = {0, 0, 5, 16, 0, 1, EF__MAX_LOG, 1}; /* 0: any */
    const uint8_t size = sizes[frame->type];
    if (frame->type == EF_LABEL && frame->label < 0) return 0;
    return !size || frame->size == size || (frame->type == EF_LOG && frame->size < size);
}

/* In the order of docs/WIRE.md: CRC, layout, tag. */
static int ef__understand(ef_link *link, ef_frame *frame) {
    const uint8_t *rx = link->rx;
    uint32_t at = EF__HEADER, end = link->rx_size, size;
    uint64_t numbers;
    uint8_t i;
    if (end < EF__HEADER + EF__CRC + 1) return 0;
    if (ef__crc(ef__seed(link, rx[1]), rx, end) != EF__RESIDUE) return 0;
    frame->type = rx[1];
    frame->cflags = rx[3];
    numbers = ef__number(rx + 4, 8);
    frame->stream = (uint16_t)numbers;
    frame->boot = (uint16_t)(numbers >> 16);
    frame->seq = (uint32_t)(numbers >> 32);
    frame->t_us = ef__number(rx + 12, 8);
    frame->dtype = rx[20];
    frame->ndim = rx[21];
    frame->label = EF_NO_LABEL;
    if (rx[0] != 1 || frame->type > EF_ACK || rx[2] & ~EF__AUTH || frame->ndim > 4) return 0;
    if (frame->type != EF_SAMPLE && (frame->dtype != EF_U8 || frame->ndim != 1)) return 0;
    end -= (uint32_t)(EF__CRC + (rx[2] ? EF__TAG : 0));
    size = ef__item_bytes(frame->dtype);
    for (i = 0; i < frame->ndim; i++, at += 2) {
        frame->shape[i] = (uint16_t)ef__number(rx + at, 2);
        size *= frame->shape[i];
        if (size > EF_RX_BYTES) return 0;
    }
    if (frame->cflags & EF__HAS_LABEL) {
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
    const uint8_t code = frame->payload[0];
    switch (frame->type) {
        case EF_CTRL:
            if (code == EF_SAY_HELLO) link->asked = 1;
            if (code == EF_AGREE) link->seed = frame->seq == link->schema ? frame->seq : 0;
            break;
        case EF_TIME:
            if (ef__number(frame->payload + 8, 8) == 0) ef_time(link, t_us, ef__number(frame->payload, 8), t_us);
            break;
        case EF_ACK:
            if (frame->stream < EF_STREAMS && frame->boot == link->boot) link->safe[frame->stream] = frame->seq + 1;
    }
}

/* One byte through COBS, backwards: a length, which stands for the zero before it, or what is in a run. */
static void ef__unstuff(ef_link *link, uint8_t byte) {
    if (link->rx_left) {
        link->rx_left--;
    } else {
        const uint8_t zero = link->rx_zero;
        link->rx_zero = byte != 255;
        link->rx_left = (uint8_t)(byte - 1);
        if (!zero) return;
        byte = 0;
    }
    if (link->rx_size < EF_RX_BYTES)
        link->rx[link->rx_size++] = byte;
    else
        link->rx_bad = 1;
}

int ef_receive(ef_link *link, uint8_t byte, uint64_t t_us, ef_frame *frame) {
    ef_frame own;
    int right;
    if (byte) {
        ef__unstuff(link, byte);
        return EF_NOTHING;
    }
    if (!(link->rx_left | link->rx_zero | link->rx_size)) return EF_NOTHING; /* nothing since the last one */
    if (!frame) frame = &own;
    right = !link->rx_bad && !link->rx_left && ef__understand(link, frame);
    link->rx_bad = link->rx_left = link->rx_zero = 0;
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
