/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/main.h"

int main(int argc, char **argv)
{
    return godwit_main(argc, argv);
}
