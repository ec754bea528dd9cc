/** The code of workers for pages, which load it where threads start; Node's pool has it from the start. */
export { workerSource } from './worker-source.ts'
