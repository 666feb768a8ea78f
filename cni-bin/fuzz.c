/* Fuzzes all of the plugin that reads foreign bytes, under the sanitizers: fuzz-testcni SECONDS [SEED]. */
#define main plugin_main
#include "testcni.c"
#undef main

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
    "{\"cniVersion\":\"1.1.0\",\"code\":11,\"msg\":\"\\u00e9 \\n\",\"details\":\"\"}",
    "{}",
    "[]",
    "{\"cniVersion\":\"1.1.0\",\"ips\":[{\"address\":\"10.244.1.2/24\",\"interface\":2}],\"dns\":{}}",
};

static size_t mutate(char *out, size_t room)
{
	static const char bits[] = "{}[]\",:\\/0123456789eE+-.tfnu \n\t\x01\x7f\x80\xff";
	const char *seed = corpus[dice(sizeof corpus / sizeof *corpus)];
	size_t size = strlen(seed);
	memcpy(out, seed, size);
	for (uint32_t n = dice(6); n; n--) {
		size_t at = dice((uint32_t)size + 1), length = dice(40);
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

static void try_one(const char *text, size_t size)
{
	char *exact = malloc(size + !size); /* no byte beyond the text, so that the sanitizer sees one too far */
	struct buffer conf = {exact, size, size, false}, quoted = {0};
	struct call call = {.command = "ADD", .no_netns = ""};
	struct scan scan, again;
	double code = 0;
	memcpy(exact, text, size);
	scan_document(&scan, exact, size, take_member, &call);
	scan_document(&again, exact, size, take_code, &code);
	put_request(&quoted, &call, &conf);
	if (!scan_document(&again, quoted.data, quoted.size, NULL, NULL)) {
		dprintf(STDERR_FILENO, "the request is no JSON: %s\n", quoted.data);
		abort();
	}
	free(quoted.data);
	free(exact);
}

int main(int argc, char **argv)
{
	static char text[1 << 12];
	int64_t end = now_ms() + (argc > 1 ? atoi(argv[1]) : 5) * 1000;
	unsigned long tries = 0;
	state = argc > 2 ? strtoull(argv[2], NULL, 10) | 1 : (uint64_t)time(NULL) | 1;
	dprintf(STDOUT_FILENO, "seed %llu\n", (unsigned long long)state);
	for (; now_ms() < end; tries++)
		try_one(text, mutate(text, sizeof text));
	dprintf(STDOUT_FILENO, "%lu inputs, no fault\n", tries);
	return 0;
}
