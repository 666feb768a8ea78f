// SPDX-License-Identifier: Apache-2.0
/* The JSON that the plugin needs: a growing buffer, escaping, and a scanner of the members of one object. */
#ifndef TESTCNI_JSON_H
#define TESTCNI_JSON_H

#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define JSON_DEPTH 512 /* levels of nesting; the limit of the agent's parser is near 1000 */

/* A part of a text that another variable owns. */
struct slice {
	const char *data;
	size_t size;
};

/* A growing buffer; `failed`: there was not enough memory. */
struct buffer {
	char *data;
	size_t size, room;
	bool failed;
};

/* The position of a scan in its text, and the fault there. */
struct scan {
	const char *start, *at, *end;
	const char *wrong;
};

/* Called for each member of the object itself; both slices are raw: strings have their quotes. */
typedef void member_fn(void *context, struct slice key, struct slice value);

static inline bool put_bytes(struct buffer *b, const char *data, size_t size)
{
	if (!b->failed && b->room - b->size < size) {
		size_t room = (b->size + size) * 2;
		char *grown = realloc(b->data, room);
		b->failed = !grown;
		b->data = grown ? grown : b->data;
		b->room = grown ? room : b->room;
	}
	if (b->failed)
		return false;
	if (size)
		memcpy(b->data + b->size, data, size);
	b->size += size;
	return true;
}

static inline void put(struct buffer *b, const char *text)
{
	put_bytes(b, text, strlen(text));
}

/* Add a JSON string; only bytes that JSON forbids are escaped. */
static inline void put_string(struct buffer *b, const char *data, size_t size)
{
	put(b, "\"");
	for (size_t i = 0; i < size; i++) {
		char code[8];
		if (data[i] == '"' || data[i] == '\\')
			put_bytes(b, (char[]){'\\', data[i]}, 2);
		else if (data[i] == '\n') /* frequent in netconfs */
			put(b, "\\n");
		else if ((unsigned char)data[i] < 0x20)
			put_bytes(b, code, (size_t)snprintf(code, sizeof code, "\\u%04x", (unsigned char)data[i]));
		else
			put_bytes(b, data + i, 1);
	}
	put(b, "\"");
}

static inline bool json_wrong(struct scan *in, const char *wrong)
{
	in->wrong = wrong;
	return false;
}

static inline int json_byte(const struct scan *in)
{
	return in->at < in->end ? (unsigned char)*in->at : -1;
}

/* The next byte that is not white space; -1 at the end. */
static inline int json_peek(struct scan *in)
{
	while (in->at < in->end && *in->at && strchr(" \t\r\n", *in->at))
		in->at++;
	return json_byte(in);
}

static inline bool json_hex(int c)
{
	return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f') || (c >= 'A' && c <= 'F');
}

static inline bool json_string(struct scan *in)
{
	for (in->at++; json_byte(in) != '"'; in->at++) {
		int c = json_byte(in);
		if (c < 0)
			return json_wrong(in, "a string has no end");
		if (c < 0x20)
			return json_wrong(in, "a control character in a string");
		if (c != '\\')
			continue;
		in->at++;
		c = json_byte(in);
		if (c <= 0 || !strchr("\"\\/bfnrtu", c))
			return json_wrong(in, "an unknown escape in a string");
		for (int digit = 0; c == 'u' && digit < 4; digit++) {
			in->at++;
			if (!json_hex(json_byte(in)))
				return json_wrong(in, "\\u without four hexadecimal digits");
		}
	}
	in->at++;
	return true;
}

static inline bool json_digits(struct scan *in)
{
	const char *begin = in->at;
	while (json_byte(in) >= '0' && json_byte(in) <= '9')
		in->at++;
	return in->at > begin || json_wrong(in, "a digit is missing");
}

static inline bool json_number(struct scan *in)
{
	if (json_byte(in) == '-')
		in->at++;
	if (json_byte(in) == '0')
		in->at++;
	else if (!json_digits(in))
		return false;
	if (json_byte(in) == '.') {
		in->at++;
		if (!json_digits(in))
			return false;
	}
	if (json_byte(in) == 'e' || json_byte(in) == 'E') {
		in->at++;
		if (json_byte(in) == '+' || json_byte(in) == '-')
			in->at++;
		return json_digits(in);
	}
	return true;
}

static inline bool json_scalar(struct scan *in)
{
	static const char *const words[] = {"true", "false", "null"};
	int c = json_peek(in);
	if (c == '"')
		return json_string(in);
	if (c == '-' || (c >= '0' && c <= '9'))
		return json_number(in);
	for (size_t i = 0; i < sizeof words / sizeof *words; i++) {
		size_t length = strlen(words[i]);
		if ((size_t)(in->end - in->at) >= length && !memcmp(in->at, words[i], length)) {
			in->at += length;
			return true;
		}
	}
	return json_wrong(in, c < 0 ? "the text ends too early" : "a value is missing");
}

static inline bool json_key(struct scan *in)
{
	if (json_peek(in) != '"')
		return json_wrong(in, "a member's name is missing");
	if (!json_string(in))
		return false;
	if (json_peek(in) != ':')
		return json_wrong(in, "a colon is missing");
	in->at++;
	return true;
}

/* Skip one value of any kind, without recursion: a stack has the open objects and lists. */
static inline bool json_skip(struct scan *in)
{
	char closers[JSON_DEPTH];
	size_t depth = 0;
	for (;;) {
		int c = json_peek(in);
		if (c == '{' || c == '[') {
			if (depth == JSON_DEPTH)
				return json_wrong(in, "nested too deep");
			in->at++;
			closers[depth++] = c == '{' ? '}' : ']';
			if (json_peek(in) != closers[depth - 1]) {
				if (c == '{' && !json_key(in))
					return false;
				continue;
			}
		} else if (!json_scalar(in)) {
			return false;
		}
		while (depth && json_peek(in) == closers[depth - 1]) {
			in->at++;
			depth--;
		}
		if (!depth)
			return true;
		if (json_peek(in) != ',')
			return json_wrong(in, closers[depth - 1] == '}' ? "a , or } is missing" : "a , or ] is missing");
		in->at++;
		if (closers[depth - 1] == '}' && !json_key(in))
			return false;
	}
}

static inline unsigned json_code_unit(const char *digits)
{
	char copy[5] = {digits[0], digits[1], digits[2], digits[3], 0};
	return (unsigned)strtoul(copy, NULL, 16);
}

static inline size_t json_utf8(unsigned c, char out[4])
{
	static const unsigned char leads[] = {0, 0, 0xc0, 0xe0, 0xf0};
	size_t length = c < 0x80 ? 1 : c < 0x800 ? 2 : c < 0x10000 ? 3 : 4;
	for (size_t i = length; i-- > 1; c >>= 6)
		out[i] = (char)(0x80 | (c & 0x3f));
	out[0] = (char)(leads[length] | c);
	return length;
}

/* The code point of the escape at *at, which is known to be valid; *at moves behind it. */
static inline unsigned json_unescape(const char **at, const char *end)
{
	static const char letters[] = "bfnrt", meant[] = "\b\f\n\r\t";
	const char *from = *at;
	const char *letter = strchr(letters, from[1]);
	*at += from[1] == 'u' ? 6 : 2;
	if (from[1] != 'u')
		return (unsigned char)(letter ? meant[letter - letters] : from[1]);
	unsigned code = json_code_unit(from + 2);
	if (code < 0xd800 || code > 0xdfff)
		return code;
	unsigned low = end - from >= 12 && from[6] == '\\' && from[7] == 'u' ? json_code_unit(from + 8) : 0;
	if (code > 0xdbff || low < 0xdc00 || low > 0xdfff)
		return 0xfffd; /* one surrogate without the other */
	*at += 6;
	return 0x10000 + ((code - 0xd800) << 10) + (low - 0xdc00);
}

/* Decode a scanned value to a C string; false if it is no string, has a NUL in it or does not fit. */
static inline bool plain_string(struct slice value, char *out, size_t room)
{
	size_t used = 0;
	if (value.size < 2 || *value.data != '"')
		return false;
	for (const char *at = value.data + 1, *end = value.data + value.size - 1; at < end;) {
		char bytes[4] = {*at};
		size_t length = 1;
		if (*at == '\\')
			length = json_utf8(json_unescape(&at, end), bytes);
		else
			at++;
		if (!bytes[0] || used + length >= room)
			return false;
		memcpy(out + used, bytes, length);
		used += length;
	}
	out[used] = 0;
	return true;
}

static inline bool number(struct slice value, double *out)
{
	char copy[64];
	if (value.size >= sizeof copy || !value.size || !strchr("-0123456789", *value.data))
		return false;
	memcpy(copy, value.data, value.size);
	copy[value.size] = 0;
	*out = strtod(copy, NULL);
	return true;
}

static inline bool is(struct slice key, const char *name)
{
	char decoded[32];
	return plain_string(key, decoded, sizeof decoded) && !strcmp(decoded, name);
}

static inline bool scan_member(struct scan *in, member_fn *member, void *context)
{
	json_peek(in);
	struct slice key = {in->at, 0};
	if (!json_key(in))
		return false;
	for (key.size = (size_t)(in->at - key.data); key.data[key.size - 1] != '"'; key.size--)
		; /* back over the colon and blanks */
	json_peek(in);
	struct slice value = {in->at, 0};
	if (!json_skip(in))
		return false;
	value.size = (size_t)(in->at - value.data);
	if (member)
		member(context, key, value);
	return true;
}

/* Scan a whole text that must be one object; if false, `in` has the fault and its position. */
static inline bool scan_document(struct scan *in, const char *data, size_t size, member_fn *member, void *context)
{
	*in = (struct scan){data, data, data + size, NULL};
	if (json_peek(in) != '{')
		return json_wrong(in, size ? "an object must begin here" : "there is nothing");
	in->at++;
	for (bool first = true; json_peek(in) != '}'; first = false) {
		if (!first && json_peek(in) != ',')
			return json_wrong(in, "a , or } is missing");
		in->at += !first;
		if (!scan_member(in, member, context))
			return false;
	}
	in->at++;
	return json_peek(in) < 0 || json_wrong(in, "something follows the object");
}

#endif
