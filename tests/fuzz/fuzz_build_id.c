/* SPDX-License-Identifier: Apache-2.0 */
/* Input: a file whose build id is looked for. */
#include "fuzz.h"

#include <string.h>
#include <sys/mman.h>

#include "base/io.h"
#include "task/file.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    enum { UNTOUCHED = 0xa5 };
    static int fd = -1;
    uint8_t id[BUILD_ID_MAX];
    memset(id, UNTOUCHED, sizeof(id));
    if (fd < 0)
        fd = memfd_create("elf", MFD_CLOEXEC);
    must(fd >= 0 && ftruncate(fd, 0) == 0 && lseek(fd, 0, SEEK_SET) == 0);
    must(write_all(fd, data, size) == 0);
    size_t length = file_build_id(fd, id);
    must(length <= sizeof(id));
    for (size_t i = length; i < sizeof(id); i++)
        must(id[i] == UNTOUCHED);
    /* What it found stands in the file. */
    must(length == 0 || memmem(data, size, id, length));
    return 0;
}
