/* libnvidia-ml.so.1 without a GPU, for tests. The environment says what it lists:

   FAKE_NVML         GPUs, separated by spaces; behind each, where it is divided, its instances after colons, `-` for a gap
   FAKE_NVML_MODELS  a model for each; without it all are alike */

#include <dirent.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

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

/* What processes use: a file a process in the folder FAKE_NVML_USE, named by its number, with UUID, bytes now, bytes at
   most, and percent busy. FAKE_NVML_LACKS names what this driver cannot do: `samples`, `accounts`, `rates`; without
   an `answer` it hangs, without `life` it dies. */

typedef struct {
    unsigned pid;
    unsigned long long used;
    unsigned gpu_instance, compute_instance;
} process;
typedef struct {
    unsigned pid;
    unsigned long long when;
    unsigned sm, memory, encoder, decoder;
} sample;
typedef struct {
    unsigned gpu, memory;
    unsigned long long most, time, began;
    unsigned running, reserved[5];
} account;

static int lacks(const char *what) { return strstr(getenv("FAKE_NVML_LACKS") ? getenv("FAKE_NVML_LACKS") : "", what) != NULL; }

static int read_use(int pid, const char *uuid, unsigned long long *now, unsigned long long *most, unsigned *busy) {
    char path[4096], found[256] = "";
    snprintf(path, sizeof path, "%s/%d", getenv("FAKE_NVML_USE") ? getenv("FAKE_NVML_USE") : "", pid);
    FILE *file = fopen(path, "r");
    if (!file) return 0;
    int read = fscanf(file, "%255s %llu %llu %u", found, now, most, busy);
    fclose(file);
    return read == 4 && !strcmp(found, uuid) && !kill(pid, 0);
}

static unsigned each_process(device which, unsigned room, process *into, sample *samples) {
    char uuid[256];
    unsigned count = 0, busy;
    unsigned long long now, most;
    nvmlDeviceGetUUID(which, uuid, sizeof uuid);
    DIR *folder = opendir(getenv("FAKE_NVML_USE") ? getenv("FAKE_NVML_USE") : "");
    for (struct dirent *entry; folder && (entry = readdir(folder));) {
        int pid = atoi(entry->d_name);
        if (!pid || !read_use(pid, uuid, &now, &most, &busy)) continue;
        if (count < room && into) into[count] = (process){pid, now, 0, 0};
        if (count < room && samples) samples[count] = (sample){pid, 1, busy, 0, 0, 0};
        count++;
    }
    if (folder) closedir(folder);
    return count;
}

int nvmlDeviceGetHandleByUUID(const char *uuid, device *found) {
    char each[256];
    for (intptr_t number = 1; exists(number); number++) {
        *found = (device)number;
        if (!nvmlDeviceGetUUID(*found, each, sizeof each) && !strcmp(each, uuid)) return 0;
        for (unsigned k = 0; k < 7; k++)
            if (!nvmlDeviceGetMigDeviceHandleByIndex((device)number, k, found) &&
                !nvmlDeviceGetUUID(*found, each, sizeof each) && !strcmp(each, uuid))
                return 0;
    }
    return 6;
}

int nvmlDeviceGetComputeRunningProcesses_v3(device which, unsigned *count, process *into) {
    unsigned room = *count;
    if (lacks("life")) kill(getpid(), SIGKILL);
    while (lacks("answer")) pause();
    *count = each_process(which, room, into, NULL);
    return *count > room ? 7 : 0;
}

int nvmlDeviceGetProcessUtilization(device which, sample *into, unsigned *count, unsigned long long since) {
    unsigned room = into ? *count : 0;
    if (lacks("samples")) return 3;
    *count = each_process(which, room, NULL, into);
    return !*count ? 6 : *count > room ? 7 : 0;
}

int nvmlDeviceGetUtilizationRates(device which, unsigned *rates) {
    rates[0] = 40;
    rates[1] = 0;
    return lacks("rates") ? 3 : 0;
}

int nvmlDeviceGetAccountingMode(device which, unsigned *mode) {
    *mode = !lacks("accounts");
    return 0;
}

int nvmlDeviceGetAccountingStats(device which, unsigned pid, account *found) {
    char uuid[256];
    unsigned long long now;
    memset(found, 0, sizeof *found);
    nvmlDeviceGetUUID(which, uuid, sizeof uuid);
    return read_use(pid, uuid, &now, &found->most, &found->gpu) ? 0 : 6;
}
