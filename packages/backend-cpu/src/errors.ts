import { TilegradError } from '@tilegrad/core'

/** Thrown by operators when a worker thread ended (killed, out of memory) with rows that it had claimed and not finished. */
export class WorkerDiedError extends TilegradError {
  override name = 'WorkerDiedError'
  /** Index of its thread. */
  readonly thread: number

  constructor(kernel: string, thread: number) {
    super(
      `pool: worker ${thread} ended while it ran kernel "${kernel}"; the outputs are incomplete. ` +
        'Later runs go on without that worker',
    )
    this.thread = thread
  }
}
