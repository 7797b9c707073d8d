/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* What godwit-scan-filter.so writes to $GODWIT_SCAN_FILTER_FD, each once. */
enum {
    SCAN_FILTER_STILL = 's', /* all tasks stand still */
    SCAN_FILTER_LESS = 'l',  /* criu is shown less than there is */
};
