// The WebGPU backend comes with its own issue; until then this package is private and empty.
export {}
