// The host's memory for tensors while the interpreter is installed.
#pragma once

namespace simt {

// Puts an allocator in front of torch's whose memory the interpreter knows to the byte, and takes
// it away again. Tensors outlive that: each goes back to where it came from.
void install_allocator();
void uninstall_allocator();

}  // namespace simt
