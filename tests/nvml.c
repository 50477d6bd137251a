/* A stand-in for the NVIDIA driver's library: what the real binding calls, answered from the file $NVML_STANDIN.
 *
 * A line is "KEY VALUE". Keys of the driver: init, count, hang (every answer waits while it is there). Keys of card 0 begin
 * with "0.", of its first MIG instance with "0/0.". A value "!N" is the error N; a key that is missing is "not supported".
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { OK = 0, NOT_SUPPORTED = 3, NOT_FOUND = 6, INSUFFICIENT_SIZE = 7 };
typedef struct { char prefix[16]; } Device;
typedef struct { unsigned long long total, free, used; } Memory;
typedef struct { unsigned gpu, memory; } Utilization;
typedef struct { unsigned pid; unsigned long long used; unsigned instance, compute; } Process;

static Device devices[64];
static unsigned known;

static int look_up(const char *prefix, const char *key, char *value, size_t size) {
    char line[512], wanted[64];
    int found = NOT_SUPPORTED;
    snprintf(wanted, sizeof wanted, "%s%s ", prefix, key);
    FILE *file = fopen(getenv("NVML_STANDIN"), "r");
    if (!file) return 9;
    while (fgets(line, sizeof line, file))
        if (!strncmp(line, wanted, strlen(wanted))) {
            line[strcspn(line, "\n")] = 0;
            snprintf(value, size, "%s", line + strlen(wanted));
            found = value[0] == '!' ? atoi(value + 1) : OK;
        }
    fclose(file);
    return found;
}

static int ask(const char *prefix, const char *key, char *value, size_t size) {
    while (!look_up("", "hang", value, size)) usleep(5000);
    return look_up(prefix, key, value, size);
}

static int number(Device *device, const char *key, unsigned long long *value) {
    char text[256];
    int code = ask(device ? device->prefix : "", key, text, sizeof text);
    if (!code) *value = strtoull(text, NULL, 10);
    return code;
}

static int small(Device *device, const char *key, unsigned *value) {
    unsigned long long wide = 0;
    int code = number(device, key, &wide);
    *value = (unsigned)wide;
    return code;
}

static int handle(const char *prefix, Device **device) {
    unsigned index = 0;
    while (index < known && strcmp(devices[index].prefix, prefix)) index++;
    if (index == known) strcpy(devices[known++].prefix, prefix);
    *device = &devices[index];
    return OK;
}

static int processes(Device *device, const char *key, unsigned *count, Process *found) {
    char text[256] = "";
    int code = ask(device->prefix, key, text, sizeof text);
    if (code) return code;
    unsigned there = 0;
    for (char *part = strtok(text, ","); part; part = strtok(NULL, ","), there++)
        if (found) {
            char *colon = strchr(part, ':');
            found[there].pid = (unsigned)atoi(part);
            found[there].used = colon[1] == '-' ? ~0ULL : strtoull(colon + 1, NULL, 10);
        }
    code = !found && there ? INSUFFICIENT_SIZE : OK;
    *count = there;
    return code;
}

static void tally(const char *what) {
    char path[512];
    snprintf(path, sizeof path, "%s.calls", getenv("NVML_STANDIN"));
    FILE *file = fopen(path, "a");
    if (file) fprintf(file, "%s\n", what), fclose(file);
}

int nvmlInitWithFlags(unsigned flags) {
    char text[256];
    int code = ask("", "init", text, sizeof text);
    if (code == NOT_SUPPORTED) code = OK;
    if (!code) tally("init");
    return (int)(flags * 0) + code;
}
int nvmlShutdown(void) { tally("shutdown"); return OK; }
const char *nvmlErrorString(int code) {
    return code == 4 ? "Insufficient Permissions" : code == 9 ? "Driver Not Loaded" : code == 15 ? "GPU is lost" : "Other";
}
int nvmlDeviceGetCount_v2(unsigned *count) { return small(NULL, "count", count); }
int nvmlDeviceGetHandleByIndex_v2(unsigned index, Device **device) {
    char prefix[16], text[256];
    snprintf(prefix, sizeof prefix, "%u.", index);
    int code = ask(prefix, "handle", text, sizeof text);
    return code == NOT_SUPPORTED ? handle(prefix, device) : code;
}
int nvmlDeviceGetName(Device *device, char *name, unsigned size) { return ask(device->prefix, "name", name, size); }
int nvmlDeviceGetUUID(Device *device, char *uuid, unsigned size) { return ask(device->prefix, "uuid", uuid, size); }
int nvmlDeviceGetMemoryInfo(Device *device, Memory *memory) {
    int code = number(device, "total", &memory->total);
    if (!code) code = number(device, "used", &memory->used);
    memory->free = memory->total - memory->used;
    return code;
}
int nvmlDeviceGetUtilizationRates(Device *device, Utilization *rates) {
    rates->memory = 0;
    return small(device, "utilization", &rates->gpu);
}
int nvmlDeviceGetTemperature(Device *device, int sensor, unsigned *degrees) {
    return sensor ? NOT_SUPPORTED : small(device, "temperature", degrees);
}
int nvmlDeviceGetComputeRunningProcesses_v3(Device *device, unsigned *count, Process *found) {
    tally("read");
    return processes(device, "compute", count, found);
}
int nvmlDeviceGetGraphicsRunningProcesses_v3(Device *device, unsigned *count, Process *found) {
    return processes(device, "graphics", count, found);
}
int nvmlDeviceGetMPSComputeRunningProcesses_v3(Device *device, unsigned *count, Process *found) {
    return processes(device, "mps", count, found);
}
int nvmlDeviceGetMigMode(Device *device, unsigned *current, unsigned *pending) {
    *pending = 0;
    return small(device, "mig", current);
}
int nvmlDeviceGetMaxMigDeviceCount(Device *device, unsigned *count) { return small(device, "instances", count); }
int nvmlDeviceGetMigDeviceHandleByIndex(Device *device, unsigned index, Device **part) {
    char prefix[16], text[256];
    snprintf(prefix, sizeof prefix, "%.*s/%u.", (int)strlen(device->prefix) - 1, device->prefix, index);
    return ask(prefix, "uuid", text, sizeof text) ? NOT_FOUND : handle(prefix, part);
}
