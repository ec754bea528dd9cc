/** The generator alone: the package's main file also brings six others, a tenth of a small program. */
declare module 'seedrandom/seedrandom.js' {
  import seedrandom = require('seedrandom')
  export = seedrandom
}
