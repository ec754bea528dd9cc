// Types of WebGPU that DOM's lack, for all tests: immediates.
/// <reference types="@webgpu/types" />
