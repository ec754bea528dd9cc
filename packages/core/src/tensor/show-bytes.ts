/** `16.0 MiB`, or `12 bytes` below one. */
export const showBytes = (bytes: number): string =>
  bytes < 2 ** 20 ? `${bytes} bytes` : `${(bytes / 2 ** 20).toFixed(1)} MiB`
