/** Before the tests: gives the processes that run them a WebGPU adapter. Without one, tests that need it fail. */
import { findAdapter } from '../scripts/adapter.mjs'

export function setup() {
  const found = findAdapter()
  if (found.env) Object.assign(process.env, found.env)
  else console.error(`WebGPU tests will fail: ${found.why}`)
}
