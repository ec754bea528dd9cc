// The packages that hold Node name their platform as a string. From a list pnpm takes which machines need them.
/** @param {string | string[] | undefined} value */
const list = (value) => (typeof value === 'string' ? [value] : value)

/** @param {{ os?: string | string[], cpu?: string | string[] }} manifest */
const readPackage = (manifest) => {
  if (manifest.os) manifest.os = list(manifest.os)
  if (manifest.cpu) manifest.cpu = list(manifest.cpu)
  return manifest
}

module.exports = { hooks: { readPackage } }
