/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* Images as criu has written them, and others have sent them. */
#include "base/error.h"

/*
 * Whether a pagemap is one, and agrees with the pages that lie beside it; |imagefd| is their
 * directory.  Pages that came as plain images (criu --stream, godwit import) are told by address in
 * no other way.  One that criu 4.2 alone can read is written anew in the form that all releases
 * read.  0, or -1 with *err set.
 */
int image_check_pagemap(int imagefd, const char *name, struct error *err);
