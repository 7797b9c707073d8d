/* SPDX-License-Identifier: Apache-2.0 */
/* Input: a file of the journal.  What was understood is written anew, and means the same. */
#include "fuzz.h"

#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>

#include "migrate/journal.h"
#include "unit/peer.h"

static char *directory;
static int workdir, file;

static void remove_directory(void)
{
    directory_remove(directory);
}

static void open_journal(void)
{
    directory = directory_make();
    atexit(remove_directory);
    workdir = open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    must(workdir >= 0 && mkdirat(workdir, "journal", 0700) == 0);
    file = openat(workdir, "journal/read", O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    must(file >= 0);
}

static bool is_ended(const char *text, size_t size)
{
    return memchr(text, '\0', size);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (!directory)
        open_journal();
    struct journal_entry entry, again;
    must(ftruncate(file, 0) == 0 && pwrite(file, data, size, 0) == (ssize_t)size);
    int r = journal_read(workdir, "read", &entry);
    if (r < 0) {
        must(r == -EBADMSG);
        return 0;
    }
    must(strcmp(entry.id, "read") == 0 && journal_decision_name(entry.decision));
    must(is_ended(entry.target, sizeof(entry.target)) && entry.pid >= 0);
    must(is_ended(entry.command, sizeof(entry.command)));
    strcpy(entry.id, "write");
    must(journal_write(workdir, &entry) == 0);
    must(journal_read(workdir, "write", &again) == 0);
    must(again.decision == entry.decision && again.nonce == entry.nonce && again.pid == entry.pid);
    must(again.started == entry.started && again.insecure == entry.insecure);
    must(strcmp(again.target, entry.target) == 0 && strcmp(again.command, entry.command) == 0);
    return 0;
}
