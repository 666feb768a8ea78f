// SPDX-License-Identifier: Apache-2.0
/* Fuzz all parts of the plugin that read input, under the sanitizers: fuzz_testcni SECONDS [SEED].
 * If LIBFUZZER is defined, libFuzzer makes the inputs: `make fuzz`.
 */
#define main plugin_main
#include "testcni.c"
#undef main

static void expect(bool good, const char *what, const struct buffer *text)
{
	if (good)
		return;
	dprintf(STDERR_FILENO, "%s: %.*s\n", what, (int)text->size, text->data);
	abort();
}

/* Check that a quoted text is read back unchanged. */
static void check_quoting(const char *text)
{
	char back[1 << 13];
	struct buffer quoted = {0};
	put_string(&quoted, text, strlen(text));
	expect(plain_string((struct slice){quoted.data, quoted.size}, back, sizeof back) && !strcmp(text, back),
	       "quoting has changed", &quoted);
	free(quoted.data);
}

static void take_config(void *context, struct slice key, struct slice value)
{
	if (is(key, "config"))
		*(struct slice *)context = value;
}

static void try_one(const char *text, size_t size)
{
	char *exact = malloc(size + !size); /* no byte after the text, so that the sanitizer finds a read behind it */
	struct buffer given = {exact, size, size, false}, request = {0};
	struct call call = defaults;
	struct verdict verdict;
	struct slice config = {0};
	struct scan scan;
	char name[128];
	memcpy(exact, text, size);
	scan_document(&scan, exact, size, take_member, &call);
	expect(scan.at >= scan.start && scan.at <= scan.end, "the scanner left its text", &given);
	judge(&given, &verdict);

	snprintf(name, sizeof name, "%.*s", (int)size, text);
	setenv("CNI_ARGS", name, 1);
	check_quoting(name);
	call.verb = verbs;
	call.no_netns = "";
	put_request(&request, &call, &given);
	expect(scan_document(&scan, request.data, request.size, take_config, &config) && config.size >= size + 2,
	       "the request is no JSON", &request);
	free(request.data);
	free(exact);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	try_one((const char *)data, size);
	return 0;
}

#ifndef LIBFUZZER
static uint64_t state;

static uint32_t dice(uint32_t sides)
{
	state ^= state << 13;
	state ^= state >> 7;
	state ^= state << 17;
	return (uint32_t)(state >> 20) % sides;
}

static const char *const corpus[] = {
    "{\"cniVersion\":\"0.3.0\",\"name\":\"testcni\",\"type\":\"testcni\",\"subnet\":\"10.244.0.0/16\"}",
    "{\"socket\":\"/run/testcni/agent.sock\",\"agentWait\":20,\"stateDir\":\"/var/lib/testcni\"}",
    "{\"socket\":\"\\/a\\\\b\\\"c\",\"agentWait\":-1e999,\"stateDir\":null,\"x\":[[[{\"y\":[1,2.5e3]}]],true,false]}",
    "{\"s\\u006fcket\":\"/\\ud83d\\ude00\\ud83d\\u00e9\\b\\f\\n\\r\\t\",\"stateDir\":\"/\\u0000\"}",
    "{\"cniVersion\":\"1.1.0\",\"code\":11,\"msg\":\"\\u00e9 \\n\",\"details\":\"\"}",
    "{ \"ips\" : [ { \"address\" : \"10.244.1.2/24\" , \"interface\" : 2 } ] , \"code\" : -0.5E+2 }",
    "{}",
    "[]",
};

static size_t mutate(char *out, size_t room)
{
	static const char bits[] = "{}[]\",:\\/0123456789eE+-.tfnu \n\t\x01\x7f\x80\xff";
	const char *seed = corpus[dice(sizeof corpus / sizeof *corpus)];
	size_t size = strlen(seed);
	memcpy(out, seed, size);
	for (uint32_t n = dice(6); n; n--) {
		size_t at = dice((uint32_t)size + 1), length = dice(8) ? dice(40) : dice(700);
		switch (dice(4)) {
		case 0: /* change a byte, or make it NUL */
			if (at < size)
				out[at] = bits[dice(sizeof bits)];
			break;
		case 1: /* cut */
			size = at;
			break;
		case 2: /* repeat a byte: deep nesting, long numbers */
			if (size + length < room && at < size) {
				memmove(out + at + length, out + at, size - at);
				memset(out + at, out[at + length], length);
				size += length;
			}
			break;
		default: /* drop some */
			if (at + length < size) {
				memmove(out + at, out + at + length, size - at - length);
				size -= length;
			}
		}
	}
	return size;
}

int main(int argc, char **argv)
{
	static char text[1 << 13];
	int64_t end = now_ms() + (int64_t)(1000 * (argc > 1 ? atof(argv[1]) : 5));
	unsigned long tries = 0;
	state = argc > 2 ? strtoull(argv[2], NULL, 10) | 1 : (uint64_t)time(NULL) | 1;
	dprintf(STDOUT_FILENO, "seed %llu\n", (unsigned long long)state);
	for (; now_ms() < end || tries <= 1000; tries++)
		try_one(text, mutate(text, sizeof text));
	dprintf(STDOUT_FILENO, "%lu inputs, no fault\n", tries);
	return 0;
}
#endif
