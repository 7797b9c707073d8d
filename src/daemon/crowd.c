/* SPDX-License-Identifier: Apache-2.0 */
#include "daemon/crowd.h"

#include <netinet/in.h>
#include <string.h>
#include <sys/socket.h>

void stranger_network(int fd, uint8_t ret[CROWD_NETWORK_BYTES])
{
    struct sockaddr_storage address = {0};
    socklen_t length = sizeof(address);
    memset(ret, 0, CROWD_NETWORK_BYTES);
    if (getpeername(fd, (struct sockaddr *)&address, &length) < 0)
        return;
    ret[0] = (uint8_t)address.ss_family;
    if (address.ss_family == AF_INET)
        memcpy(ret + 1, &((const struct sockaddr_in *)&address)->sin_addr, 4);
    else if (address.ss_family == AF_INET6)
        memcpy(ret + 1, &((const struct sockaddr_in6 *)&address)->sin6_addr, 8);
}

static size_t count_of_network(const struct stranger *crowd, size_t count, size_t which)
{
    size_t same = 0;
    for (size_t i = 0; i < count; i++)
        same += memcmp(crowd[i].network, crowd[which].network, CROWD_NETWORK_BYTES) == 0;
    return same;
}

size_t crowd_choose(const struct stranger *crowd, size_t count)
{
    size_t chosen = 0, most = 0;
    for (size_t i = 0; i < count; i++) {
        size_t same = count_of_network(crowd, count, i);
        if (same > most || (same == most && crowd[i].since_usec < crowd[chosen].since_usec)) {
            chosen = i;
            most = same;
        }
    }
    return chosen;
}
