/* libnvidia-ml.so.1 without a GPU, for tests. The environment says what it lists:

   FAKE_NVML         GPUs, separated by spaces; behind each, where it is divided, its instances after colons, `-` for a gap
   FAKE_NVML_MODELS  a model for each; without it all are alike */

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

typedef void *device; /* number of the GPU, from 1; for an instance its number too, from 1, in hundreds */

static char *word(const char *text, const char *separator, int wanted, char *into) {
    strncpy(into, text ? text : "", 4095);
    char *rest = into, *found;
    while ((found = strsep(&rest, separator)) && wanted--)
        ;
    return found;
}

static char *gpu(int number, char *into) { return word(getenv("FAKE_NVML"), " ", number - 1, into); }

static int exists(int number) {
    char text[4096] = "";
    char *found = gpu(number, text);
    return found && *found;
}

static int copy(const char *text, char *into, unsigned size) {
    if (!text) return 6;
    strncpy(into, text, size - 1);
    into[size - 1] = 0;
    return 0;
}

int nvmlInitWithFlags(unsigned flags) { return 0; }
int nvmlInit_v2(void) { return 0; }
int nvmlShutdown(void) { return 0; }
const char *nvmlErrorString(int code) { return "an error of the fake"; }

int nvmlDeviceGetCount_v2(unsigned *count) {
    if (getenv("FAKE_NVML_BROKEN")) return 999;
    for (*count = 0; exists(*count + 1);) ++*count;
    return 0;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned index, device *found) {
    *found = (device)(intptr_t)(index + 1);
    return 0;
}

int nvmlDeviceGetUUID(device which, char *into, unsigned size) {
    char text[4096] = "", part[4096] = "";
    int number = (intptr_t)which % 100, instance = (intptr_t)which / 100;
    return copy(word(gpu(number, text), ":", instance, part), into, size);
}

int nvmlDeviceGetName(device which, char *into, unsigned size) {
    char text[4096] = "";
    const char *models = getenv("FAKE_NVML_MODELS");
    return copy(models ? word(models, " ", (intptr_t)which % 100 - 1, text) : "Fake", into, size);
}

int nvmlDeviceGetMigMode(device which, unsigned *current, unsigned *pending) {
    char text[4096] = "";
    *current = *pending = strchr(gpu((intptr_t)which, text), ':') != NULL;
    return 0;
}

int nvmlDeviceGetMaxMigDeviceCount(device which, unsigned *count) {
    *count = 7;
    return 0;
}

int nvmlDeviceGetMigDeviceHandleByIndex(device which, unsigned index, device *found) {
    char text[4096] = "", part[4096] = "";
    char *uuid = word(gpu((intptr_t)which, text), ":", index + 1, part);
    if (!uuid || !*uuid || *uuid == '-') return 6;
    *found = (device)((intptr_t)which + 100 * (index + 1));
    return 0;
}
