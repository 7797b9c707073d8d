/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* Pieces of JSON lines on standard output. */

/* A string with its quotes.  Control characters, which nothing of ours holds, become spaces. */
void json_print_string(const char *text);
