/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/* The program.  Exit status. */
int godwit_main(int argc, char **argv);
