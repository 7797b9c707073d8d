/* SPDX-License-Identifier: Apache-2.0 */
/* Gives the files named, and those in the directories named, to a fuzz target, one after the other.
 */
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "fuzz.h"

static unsigned replayed;

static int replay_file(const char *path)
{
    FILE *file = fopen(path, "re");
    struct stat st;
    if (!file || fstat(fileno(file), &st) < 0) {
        perror(path);
        return 1;
    }
    size_t size = (size_t)st.st_size;
    uint8_t *data = malloc(size); /* of the exact size: a read beyond it is seen */
    if (size > 0 && (!data || fread(data, 1, size, file) != size)) {
        perror(path);
        return 1;
    }
    fclose(file);
    fprintf(stderr, "%s\n", path);
    LLVMFuzzerTestOneInput(data, size);
    free(data);
    replayed++;
    return 0;
}

static int replay_directory(const char *path)
{
    struct dirent **entries;
    int count = scandir(path, &entries, NULL, alphasort), status = 0;
    for (int i = 0; i < count; i++) {
        char file[4096];
        snprintf(file, sizeof(file), "%s/%s", path, entries[i]->d_name);
        if (entries[i]->d_name[0] != '.')
            status |= replay_file(file);
        free(entries[i]);
    }
    if (count >= 0)
        free(entries);
    return status;
}

int main(int argc, char **argv)
{
    int status = 0;
    for (int i = 1; i < argc; i++) {
        struct stat st;
        if (stat(argv[i], &st) < 0) {
            perror(argv[i]);
            status = 1;
        } else {
            status |= S_ISDIR(st.st_mode) ? replay_directory(argv[i]) : replay_file(argv[i]);
        }
    }
    fprintf(stderr, "%u inputs\n", replayed);
    return status || replayed == 0;
}
