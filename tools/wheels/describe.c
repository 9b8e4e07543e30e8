// Loads the operator library of Windows and prints the kernels that it takes: describe LIBRARY.
#include <stdio.h>
#include <windows.h>

typedef int (*Describe)(char* message, size_t size);

int main(int count, char** words) {
  if (count != 2) return 2;
  HMODULE library = LoadLibraryA(words[1]);
  if (library == NULL) {
    fprintf(stderr, "%s does not load: error %lu\n", words[1], GetLastError());
    return 1;
  }
  Describe describe = (Describe)(void*)GetProcAddress(library, "moe_export_describe");
  char message[1024];
  if (GetProcAddress(library, "RegisterCustomOps") == NULL || describe == NULL ||
      describe(message, sizeof message) != 0) {
    fprintf(stderr, "%s lacks a function\n", words[1]);
    return 1;
  }
  puts(message);
  return 0;
}
